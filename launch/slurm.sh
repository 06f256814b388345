#!/usr/bin/env bash
# A run on 1 to N nodes of a SLURM cluster: one process per node, with all GPUs of its node:
#
#   sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh --tier 100
#
# from the checkout. Checkout and JAXCHAT_HOME must be on a disk that all nodes share. Arguments after
# the script's name go to run_speedrun.py. A run that is stopped (time limit, preemption, lost node)
# saves, is requeued, and resumes. See launch/README.md.
#SBATCH --job-name=jaxchat
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxchat-%j.log
#SBATCH --signal=TERM@180
set -euo pipefail

REQUEUE=75 # exit code of run_speedrun.py when it asks for a restart
KILLED=137 # exit code of srun when one process was killed, although the others exit with 75
MAX_RESTARTS=${JAXCHAT_MAX_RESTARTS:-20} # so that a run that is always killed ends

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
    # not cancelled
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_RESTARTS" ]; then
        echo "slurm.sh: the run was stopped; it is requeued"
        scontrol requeue "$SLURM_JOB_ID"
        sleep 60 # SLURM ends this script
    fi
    echo "slurm.sh: it was started again $MAX_RESTARTS times; submit it again to resume" >&2
fi
exit "$code"
