#!/usr/bin/env bash
# Segment a folder of volumes in many jobs at once:
#
#   qsub -t 1-16 -v TASK=liver.task.pt,INPUT=scans,OUTPUT=segmentations predict_array.sh
#
# All tasks of the array are the same line: each takes the volumes that no other one has taken, and
# a volume is done when its receipt is there. Send the same array again to do what is missing.
#$ -N iris-predict
#$ -S /bin/bash
#$ -cwd
#$ -V
#$ -j y
#$ -t 1-4
#$ -pe smp 8
#$ -l h_rt=04:00:00
#$ -notify
#$ -r y
set -u
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris predict -t "${TASK:?a task file}" -i "${INPUT:?a folder of volumes}" \
  -o "${OUTPUT:?a folder for the label maps}" -j "${NSLOTS:-1}"
