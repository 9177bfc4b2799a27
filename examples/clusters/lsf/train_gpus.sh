#!/usr/bin/env bash
# One training run on all GPUs of one host:
#
#   RUN=my-run IRIS_WORKSPACE=/data/iris bsub < train_gpus.sh
#
# The flags are explained in train.sh. Several hosts: `-R "span[ptile=32]"` with more slots, and one
# torchrun on each of them by LSF's blaunch, as slurm/train_gpus.sh does with srun.
#BSUB -J iris-train
#BSUB -o iris-train-%J.log
#BSUB -W 24:00
#BSUB -n 32
#BSUB -R "span[hosts=1]"
#BSUB -gpu "num=4"
#BSUB -wa USR2
#BSUB -wt 5
#BSUB -Q 75
#BSUB -r
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}
gpus=${GPUS:-4}
export OMP_NUM_THREADS=1

# One rank for each GPU; -j counts for each rank. As many GPUs as -gpu asks for.
iris train "$run" -w "$workspace" --devices "$(seq -s, 0 $((gpus - 1)))" \
  -j $((${LSB_DJOB_NUMPROC:-8} / gpus - 1)) &
child=$!

signalled=
trap 'signalled=1; kill -TERM "$child"' USR2 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done
exit "$code"
