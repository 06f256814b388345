#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1, CPU: a jitted call returns before it has read its NumPy argument, and takes
# what is written into it afterwards.
#
# Expected: the argument's values at the time of the call (known before it was run: guesses.md, 61).
# Happens (2026-11-28): a function that is busy with a product before it sums 65,536 ones, in which
# the caller writes twos at once, gives another sum in nearly all of 20 calls. Small arrays are copied.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one (0.11 and later need
# PYTHON=python3.12). About 350 MB.
# Counter: COPY=1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}"
cat >"$folder/late.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("versions: jax", jax.__version__)
busy = jnp.ones((800, 800)).block_until_ready()
total = jax.jit(lambda w, x: (w @ w @ w @ w).sum() * 0 + x.sum())
total(busy, np.ones(65_536, np.float32)).block_until_ready()
wrong = 0
for _ in range(20):
    x = np.ones(65_536, np.float32)
    result = total(busy, jnp.array(x).block_until_ready() if sys.argv[1:] else x)
    x[:] = 2
    wrong += float(result) != 65_536
print(f"written to after the call: {wrong} of 20 sums are not of what was given")
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/late.py" ${COPY:-})
echo "$found"
grep -qE ': ([5-9]|1[0-9]|20) of 20' <<<"$found"
