#!/usr/bin/env bash
# One training run on one GPU, stopped and requeued as often as the cluster likes:
#
#   RUN=my-run IRIS_WORKSPACE=/data/iris bsub < train.sh
#BSUB -J iris-train
#BSUB -o iris-train-%J.log
#BSUB -W 24:00
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -gpu "num=1"
# bsub -wa and -wt (IBM Spectrum LSF command reference): USR2 five minutes before LSF ends the job.
#BSUB -wa USR2
#BSUB -wt 5
# bsub -Q: a job that ends with this code goes back into the queue. -r: so does one whose host died.
#BSUB -Q 75
#BSUB -r
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}

iris train "$run" -w "$workspace" -j $((${LSB_DJOB_NUMPROC:-2} - 1)) &
child=$!

# bash runs a trap only between commands: so iris runs in the background, and `wait`, which a signal
# interrupts, is called again for its exit code. LSF may signal iris itself too: once is enough.
signalled=
trap 'signalled=1; kill -TERM "$child"' USR2 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done
exit "$code"
