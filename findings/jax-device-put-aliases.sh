#!/usr/bin/env bash
# jax 0.10.2 and 0.12.0.1, CPU: `device_put(x, may_alias=False)` of a NumPy array that begins at a
# multiple of 64 bytes shares its memory with it all the same.
#
# Expected: a copy, as the argument says (known before it was run: guesses.md, 57).
# Happens (2026-11-28): what is written into the NumPy array later is seen in the JAX array, with
# may_alias=False as with True and without; not where the array begins 4 bytes further, and not with
# `jnp.array`.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one (0.11 and later need
# PYTHON=python3.12). About 350 MB.
# Counter: OFFSET=4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}"
cat >"$folder/alias.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("versions: jax", jax.__version__)
memory = np.zeros(4 * 1024 + 128, np.uint8)
begin = -memory.ctypes.data % 64 + int(sys.argv[1])
x = memory[begin : begin + 4 * 1024].view(np.float32)
device = jax.devices()[0]
for name, put in (
    ("may_alias=False", lambda x: jax.device_put(x, device, may_alias=False)),
    ("jnp.array", jnp.array),
):
    x[:] = 1
    there = put(x).block_until_ready()
    x[:] = 2
    print(f"{name}: 1 was given, 2 written afterwards, {there[0]:g} is there")
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/alias.py" "${OFFSET:-0}")
echo "$found"
grep -qx 'may_alias=False: 1 was given, 2 written afterwards, 2 is there' <<<"$found"
grep -qx 'jnp.array: 1 was given, 2 written afterwards, 1 is there' <<<"$found"
