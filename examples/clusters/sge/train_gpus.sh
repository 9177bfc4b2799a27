#!/usr/bin/env bash
# One training run on all GPUs of one host:
#
#   qsub -v RUN=my-run,IRIS_WORKSPACE=/data/iris train_gpus.sh
#
# The flags are explained in train.sh. Several hosts want a parallel environment of the site, and one
# torchrun on each of them, as slurm/train_gpus.sh starts them with srun.
#$ -N iris-train
#$ -S /bin/bash
#$ -cwd
#$ -V
#$ -j y
#$ -pe smp 32
#$ -l gpu=4
#$ -l h_rt=24:00:00
#$ -l s_rt=23:50:00
#$ -notify
#$ -r y
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}
gpus=${GPUS:-4}
export OMP_NUM_THREADS=1

# One rank for each GPU; -j counts for each rank. As many GPUs as `-l gpu` asks for.
iris train "$run" -w "$workspace" --devices "$(seq -s, 0 $((gpus - 1)))" \
  -j $((${NSLOTS:-8} / gpus - 1)) &
child=$!

signalled=
trap 'signalled=1; kill -TERM "$child"' USR1 USR2 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done

# 99: back into the queue.
if [ "$code" -eq 75 ]; then exit 99; fi
exit "$code"
