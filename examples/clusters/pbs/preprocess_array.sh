#!/usr/bin/env bash
# Preprocess the sets of a plan in many jobs at once:
#
#   qsub -J 1-8 -v IRIS_WORKSPACE=/data/iris preprocess_array.sh
#
# All subjobs are the same line: each takes the cases that no other one has taken. A case is done
# when its receipt is there, so the line may be sent again at any time.
#PBS -N iris-preprocess
#PBS -j oe
#PBS -J 1-4
#PBS -l select=1:ncpus=8:mem=32gb
#PBS -l walltime=04:00:00
#PBS -r y
set -u
cd "$PBS_O_WORKDIR" || exit 5
# exec: iris takes the place of the shell, so signals reach it without a trap.
exec iris preprocess -w "${IRIS_WORKSPACE:-$PWD}" -j "${NCPUS:-1}"
