#!/usr/bin/env bash
# One GPU, under 8 minutes: attention, the steps of d12, d20 and d24, fp8, and nanochat beside them.
#
#   bench/gpu.sh [--nanochat CHECKOUT --torch-python PYTHON] [--json FILE]
#   bench/gpu.sh --smoke          # tiny shapes, on a CPU: shows that it works
#
# PYTHON is the interpreter that has jaxchat (default: .venv/bin/python, else python3). One table is
# printed at the end; progress goes to standard error.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUDA_DEVICE_MAX_CONNECTIONS=1 XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}"
exec "$PYTHON" bench/gpu.py "$@"
