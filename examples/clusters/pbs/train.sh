#!/usr/bin/env bash
# One training run on one GPU, stopped and queued again as often as the cluster likes. From the
# folder that holds this script:
#
#   qsub -v RUN=my-run,IRIS_WORKSPACE=/data/iris train.sh
#PBS -N iris-train
#PBS -j oe
#PBS -l select=1:ncpus=8:ngpus=1:mem=64gb
#PBS -l walltime=24:00:00
# PBS Professional reference, qsub -r: a job that the scheduler preempts by requeueing, or whose host
# died, starts again. PBS sends TERM first, and KILL after the queue's kill_delay.
#PBS -r y
set -u
cd "$PBS_O_WORKDIR" || exit 5
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}

# PBS gives no warning before the walltime: iris stops by itself, half an hour earlier.
iris train "$run" -w "$workspace" -j $((${NCPUS:-2} - 1)) --stop-after 23.5h &
child=$!

# bash runs a trap only between commands: so iris runs in the background, and `wait`, which a signal
# interrupts, is called again for its exit code.
signalled='' asked=no
trap 'signalled=1 asked=yes; kill -TERM "$child"' TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done

# Stopped by its own clock: another job goes on (qrerun is for operators only). Stopped by TERM: PBS
# requeues it, or somebody deleted it.
if [ "$code" -eq 75 ] && [ "$asked" = no ]; then
  qsub -W depend=afterany:"$PBS_JOBID" -v RUN="$run",IRIS_WORKSPACE="$workspace" train.sh
fi
exit "$code"
