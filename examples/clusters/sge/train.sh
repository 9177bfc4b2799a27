#!/usr/bin/env bash
# One training run on one GPU, stopped and rescheduled as often as the cluster likes:
#
#   qsub -v RUN=my-run,IRIS_WORKSPACE=/data/iris train.sh
#
# Names of parallel environments and of the GPU resource differ from site to site.
#$ -N iris-train
#$ -S /bin/bash
#$ -cwd
#$ -V
#$ -j y
#$ -pe smp 8
#$ -l gpu=1
#$ -l h_rt=24:00:00
# queue_conf(5): USR1 at the soft limit. qsub -notify: USR1 before the job is suspended and USR2
# before it is killed, as long before as the queue's `notify` says (60 s unless it was changed).
#$ -l s_rt=23:50:00
#$ -notify
# A job whose host died starts again.
#$ -r y
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}

iris train "$run" -w "$workspace" -j $((${NSLOTS:-2} - 1)) &
child=$!

# bash runs a trap only between commands: so iris runs in the background, and `wait`, which a signal
# interrupts, is called again for its exit code.
signalled=
trap 'signalled=1; kill -TERM "$child"' USR1 USR2 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done

# sge_conf(5), FORBID_RESCHEDULE: unless it is set, a job that exits with 99 goes back into the queue.
if [ "$code" -eq 75 ]; then exit 99; fi
exit "$code"
