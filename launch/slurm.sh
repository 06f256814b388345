#!/usr/bin/env bash
# A run on 1 to N nodes of a SLURM cluster, one process a node, which has all GPUs of its node:
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --tier 100
#
# from the checkout, which must be on a disk that all nodes share, as must JAXCHAT_HOME. What follows
# the script's name goes to run_speedrun.py. A run that is stopped (the time limit, preemption, a lost
# node) saves, is queued again, and goes on where it was. See launch/README.md.
#SBATCH --job-name=jaxchat
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxchat-%j.log
#SBATCH --signal=TERM@180
set -euo pipefail

REQUEUE=75 # how run_speedrun.py ends when it is to be started again
KILLED=137 # how srun ends when one of the processes was killed, though the others end with 75
MAX_RESTARTS=${JAXCHAT_MAX_RESTARTS:-20} # so that what is always killed does not run for ever

cd "${SLURM_SUBMIT_DIR:?this script is for sbatch: sbatch launch/slurm.sh --tier 100}"
python=${JAXCHAT_PYTHON:-.venv/bin/python}
if [ ! -x "$(command -v "$python")" ]; then
    echo "slurm.sh: there is no $python in $PWD; submit from the checkout, or set JAXCHAT_PYTHON." >&2
    exit 2
fi

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export JAXCHAT_COORDINATOR=${JAXCHAT_COORDINATOR:-$head:$((20000 + SLURM_JOB_ID % 10000 * 2))}
export JAXCHAT_PROCESSES=$SLURM_NTASKS PYTHONUNBUFFERED=1

echo "slurm.sh: start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST"
code=0
# shellcheck disable=SC2016 # each task has its own SLURM_PROCID
srun --kill-on-bad-exit=1 --label \
    bash -c 'JAXCHAT_PROCESS=$SLURM_PROCID exec "$0" run_speedrun.py "$@"' "$python" "$@" || code=$?

state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if { [ "$code" = "$REQUEUE" ] || [ "$code" = "$KILLED" ]; } && [ "$state" = RUNNING ]; then
    # and was not cancelled
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
        echo "slurm.sh: the run was stopped; it is queued again"
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60 # SLURM ends this script
    fi
    echo "slurm.sh: it was started again $MAX_RESTARTS times; submit it again to go on" >&2
fi
exit "$code"
