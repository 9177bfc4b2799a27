#!/usr/bin/env bash
# One training run on all GPUs of one node, or of several:
#
#   RUN=my-run IRIS_WORKSPACE=/data/iris sbatch train_gpus.sh
#   RUN=my-run IRIS_WORKSPACE=/data/iris sbatch --nodes=2 train_gpus.sh
#
# All nodes see the workspace under the same path. On one node `iris train --devices 0,1,2,3` does the
# same without torchrun. The number of GPUs may change between two starts of a run, as long as it
# divides training.batch.
#SBATCH --job-name=iris-train
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=256G
#SBATCH --requeue
#SBATCH --open-mode=append
# Explained in train.sh; more time, as the ranks stop together.
#SBATCH --signal=B:USR1@240
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}
gpus=${SLURM_GPUS_ON_NODE:-1}
cpus=${SLURM_CPUS_PER_TASK:-2}

export SRUN_CPUS_PER_TASK=$cpus
export OMP_NUM_THREADS=1
# Seconds torchrun waits after TERM before it kills its ranks: they finish their step and save.
# Older releases of torch do not read this and always wait 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=200
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))

# One torchrun on each node; it starts one rank for each GPU. -j counts for each rank.
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$port" \
  -m iris_cli train "$run" -w "$workspace" -j $((cpus / gpus - 1)) &
child=$!

# torchrun passes TERM on to its ranks, and would die of USR1; srun would kill the step at TERM. So
# TERM goes to the processes of the step (scancel(1): without --batch the script is left out).
signalled='' asked=no
trap 'signalled=1 asked=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done
# Requeueing ends this script by TERM, which must not come between.
trap '' USR1 TERM

# torchrun ends with 1 whatever its ranks ended with, so the run itself is asked: 75 is "can go on",
# 5 that a rank was lost, or memory or disk. Where nobody asked it to stop there are a few new
# starts, then somebody looks.
if [ "$code" -ne 0 ]; then
  iris status "$run" -w "$workspace" --exit-code
  code=$?
fi
if [ "$asked" = no ] && [ "${SLURM_RESTART_COUNT:-0}" -ge 5 ]; then
  echo "ended by itself after ${SLURM_RESTART_COUNT} starts; not requeued" >&2
elif { [ "$code" -eq 75 ] || [ "$code" -eq 5 ]; } &&
  [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
