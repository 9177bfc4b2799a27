#!/usr/bin/env bash
# Preprocess the sets of a plan in many jobs at once:
#
#   qsub -t 1-8 -v IRIS_WORKSPACE=/data/iris preprocess_array.sh
#
# All tasks of the array are the same line: each takes the cases that no other one has taken. A case
# is done when its receipt is there, so the line may be sent again at any time.
#$ -N iris-preprocess
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
exec iris preprocess -w "${IRIS_WORKSPACE:-$PWD}" -j "${NSLOTS:-1}"
