#!/usr/bin/env bash
# One GPU, under 8 minutes: all steps compiled at once, then measured one by one beside nanochat's,
# traces of training and decoding, and the speed of decoding.
#
#   bench/gpu.sh --out FOLDER [--nanochat CHECKOUT --torch-python PYTHON]
#   bench/gpu.sh --smoke --out FOLDER    # tiny shapes, on a CPU: shows that it works
#
# PYTHON is the interpreter that has jaxchat (default: .venv/bin/python, else python3). Results are
# written as they come into FOLDER/results.jsonl, the traces beside it; a table is printed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON=python3
  [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUDA_DEVICE_MAX_CONNECTIONS=1 XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}"
exec "$PYTHON" bench/gpu.py "$@"
