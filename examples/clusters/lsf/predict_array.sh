#!/usr/bin/env bash
# Segment a folder of volumes in many jobs at once:
#
#   TASK=liver.task.pt INPUT=scans OUTPUT=segmentations bsub < predict_array.sh
#
# All elements of the array are the same line: each takes the volumes that no other one has taken,
# and a volume is done when its receipt is there. Send the array again to do what is missing.
#BSUB -J iris-predict[1-4]
#BSUB -o iris-predict-%J-%I.log
#BSUB -W 4:00
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -wa USR2
#BSUB -wt 1
#BSUB -r
set -u
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris predict -t "${TASK:?a task file}" -i "${INPUT:?a folder of volumes}" \
  -o "${OUTPUT:?a folder for the label maps}" -j "${LSB_DJOB_NUMPROC:-1}"
