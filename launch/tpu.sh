#!/usr/bin/env bash
# A run on the TPU of this machine: a TPU VM, or a notebook host. From the checkout:
#
#   bash launch/tpu.sh --tier tpu_v5e8 --set 'mirror.url="gs://BUCKET/runs"'
#
# Installs into .venv the first time. JAXCHAT_WHEEL names (by its whole path) a wheel of jaxchat, from which the Rust
# extension is taken; without it, cargo builds it. JAXCHAT_PYTHON is Python 3.11 or newer. Arguments
# go to run_speedrun.py; the same command resumes. See launch/README.md.
set -euo pipefail

cd "$(dirname "$0")/.."
python=${JAXCHAT_PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "tpu.sh: $python is not Python 3.11 or newer; name one in JAXCHAT_PYTHON." >&2
    exit 2
fi
if [ ! -e .venv/tpu-installed ]; then
    "$python" -m venv .venv
    pip=(.venv/bin/python -m pip install --quiet --constraint constraints.txt 'jax[tpu]')
    if [ -n "${JAXCHAT_WHEEL:-}" ]; then
        "${pip[@]}" "${JAXCHAT_WHEEL}[cloud]"
        # run_speedrun.py takes the package beside it, which lacks only the extension
        .venv/bin/python -c 'import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wheel.extractall(".", [n for n in wheel.namelist() if n.startswith("jaxchat/_bpe.")])' "$JAXCHAT_WHEEL"
    else
        "${pip[@]}" --editable '.[cloud]'
    fi
    touch .venv/tpu-installed
fi
exec .venv/bin/python run_speedrun.py "$@"
