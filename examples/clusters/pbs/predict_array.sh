#!/usr/bin/env bash
# Segment a folder of volumes in many jobs at once:
#
#   qsub -J 1-16 -v TASK=liver.task.pt,INPUT=scans,OUTPUT=segmentations predict_array.sh
#
# All subjobs are the same line: each takes the volumes that no other one has taken, and a volume is
# done when its receipt is there. Send the same array again to do what is missing.
#PBS -N iris-predict
#PBS -j oe
#PBS -J 1-4
#PBS -l select=1:ncpus=8:mem=32gb
#PBS -l walltime=04:00:00
#PBS -r y
set -u
cd "$PBS_O_WORKDIR" || exit 5
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris predict -t "${TASK:?a task file}" -i "${INPUT:?a folder of volumes}" \
  -o "${OUTPUT:?a folder for the label maps}" -j "${NCPUS:-1}"
