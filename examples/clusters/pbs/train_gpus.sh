#!/usr/bin/env bash
# One training run on all GPUs of one host. From the folder that holds this script:
#
#   qsub -v RUN=my-run,IRIS_WORKSPACE=/data/iris train_gpus.sh
#
# The flags are explained in train.sh. Several hosts: `-l select=2:...`, and one torchrun on each of
# them by pbsdsh or mpiexec, as slurm/train_gpus.sh starts them with srun.
#PBS -N iris-train
#PBS -j oe
#PBS -l select=1:ncpus=32:ngpus=4:mem=256gb
#PBS -l walltime=24:00:00
#PBS -r y
set -u
cd "$PBS_O_WORKDIR" || exit 5
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}
gpus=${GPUS:-4}
export OMP_NUM_THREADS=1

# One rank for each GPU; -j counts for each rank. As many GPUs as ngpus asks for.
iris train "$run" -w "$workspace" --devices "$(seq -s, 0 $((gpus - 1)))" \
  -j $((${NCPUS:-8} / gpus - 1)) --stop-after 23.5h &
child=$!

signalled='' asked=no
trap 'signalled=1 asked=yes; kill -TERM "$child"' TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done

if [ "$code" -eq 75 ] && [ "$asked" = no ]; then
  qsub -W depend=afterany:"$PBS_JOBID" \
    -v RUN="$run",IRIS_WORKSPACE="$workspace",GPUS="$gpus" train_gpus.sh
fi
exit "$code"
