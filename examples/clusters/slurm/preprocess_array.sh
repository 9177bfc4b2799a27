#!/usr/bin/env bash
# Preprocess the sets of a plan in many jobs at once:
#
#   IRIS_WORKSPACE=/data/iris sbatch --array=1-8 preprocess_array.sh
#
# All tasks of the array are the same line: each takes the cases that no other one has taken. A case
# is done when its receipt is there, so the line may be sent again at any time.
#SBATCH --job-name=iris-preprocess
#SBATCH --output=%x-%A-%a.log
#SBATCH --array=1-4
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
# Preempted or lost with its node, a task comes back by itself.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -eu
workspace=${IRIS_WORKSPACE:-$PWD}
# exec: iris takes the place of the shell, so signals reach it without a trap. When it exits with 75
# at the time limit, what is left belongs to the other tasks, or to the next array.
exec iris preprocess -w "$workspace" -j "${SLURM_CPUS_PER_TASK:-1}"
