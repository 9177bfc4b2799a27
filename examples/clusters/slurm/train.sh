#!/usr/bin/env bash
# One training run on one GPU, stopped and requeued as often as the cluster likes:
#
#   RUN=my-run IRIS_WORKSPACE=/data/iris sbatch train.sh
#
# Options given to sbatch win over the lines below. Without a GPU: sbatch --gpus-per-node=0 train.sh
#SBATCH --job-name=iris-train
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
# The job may be put back into the queue, and then goes on in the same log.
#SBATCH --requeue
#SBATCH --open-mode=append
# sbatch(1): USR1 to the batch shell alone, 120 s before the time limit (Slurm may be 60 s early).
# At preemption it comes where slurm.conf has SlurmctldParameters=preempt_send_user_signal, and
# TERM to the step where it has not; the partition's GraceTime is how long saving may take.
#SBATCH --signal=B:USR1@120
set -u
run=${RUN:-my-run}
workspace=${IRIS_WORKSPACE:-$PWD}
cpus=${SLURM_CPUS_PER_TASK:-2}

# Since Slurm 22.05 srun does not take over the cpus of the job by itself.
export SRUN_CPUS_PER_TASK=$cpus
# All cpus but one make episodes. srun, not a bare command: a step has its own signals and limits.
srun iris train "$run" -w "$workspace" -j $((cpus - 1)) &
child=$!

# bash runs a trap only between commands: so iris runs in the background, and `wait`, which a signal
# interrupts, is called again for its exit code. srun passes USR1 on to iris; of TERM it would kill
# the step at once.
signalled=
trap 'signalled=1; kill -USR1 "$child"' USR1 TERM
while wait "$child"; code=$?; [ -n "$signalled" ]; do signalled=; done
# Requeueing ends this script by TERM, which must not come between.
trap '' USR1 TERM

# 75: stopped with everything saved. A job that was cancelled is on its way out and stays out.
if [ "$code" -eq 75 ] && [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
