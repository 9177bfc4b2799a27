#!/usr/bin/env bash
# Segment a folder of volumes in many jobs at once:
#
#   TASK=liver.task.pt INPUT=scans OUTPUT=segmentations sbatch --array=1-16 predict_array.sh
#
# All tasks of the array are the same line: each takes the volumes that no other one has taken, and
# a volume is done when its receipt is there. Send the same array again to do what is missing.
# On GPUs: sbatch --gpus-per-node=1 --cpus-per-task=4 predict_array.sh (iris finds the GPU).
#SBATCH --job-name=iris-predict
#SBATCH --output=%x-%A-%a.log
#SBATCH --array=1-4
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -eu
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris predict -t "${TASK:?a task file}" -i "${INPUT:?a folder of volumes}" \
  -o "${OUTPUT:?a folder for the label maps}" -j "${SLURM_CPUS_PER_TASK:-1}"
