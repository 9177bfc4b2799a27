#!/usr/bin/env bash
# Preprocess the sets of a plan in many jobs at once:
#
#   IRIS_WORKSPACE=/data/iris bsub < preprocess_array.sh
#
# All elements of the array are the same line: each takes the cases that no other one has taken. A
# case is done when its receipt is there, so the line may be sent again at any time.
#BSUB -J iris-preprocess[1-4]
#BSUB -o iris-preprocess-%J-%I.log
#BSUB -W 4:00
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -wa USR2
#BSUB -wt 1
#BSUB -r
set -u
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris preprocess -w "${IRIS_WORKSPACE:-$PWD}" -j "${LSB_DJOB_NUMPROC:-1}"
