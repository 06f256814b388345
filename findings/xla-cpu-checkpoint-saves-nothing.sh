#!/usr/bin/env bash
# jax.checkpoint on a CPU (jaxlib 0.10.2): around layers that a Python loop calls, it makes a gradient
# take more memory, not less. 0.11.2 and 0.12.0.1 save what one expects.
#
# Expected (guesses.md, 18): at most half the temporaries of the gradient without it.
# Happens (2026-11-28): 16 blocks of four products [4096, 64] x [64, 64] and tanh, written out: 69.5 MB
# without, 85.2 MB with jax.checkpoint around each block (22 MB from 0.11.2 on). The same blocks
# in a lax.scan: 157.3 MB without, 23.1 MB with.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one (0.11 and later need
# PYTHON=python3.12). About 350 MB.
# Counter: JAX=0.11.2 PYTHON=python3.12
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}"
cat >"$folder/memory.py" <<'PYTHON'
import jax
import jax.numpy as jnp


def block(x, w):
    for _ in range(4):
        x = jnp.tanh(x @ w)
    return x


def megabytes(run):
    """The temporaries of the gradient of what runs all blocks."""
    weights, x = jnp.ones((16, 64, 64)), jnp.ones((4096, 64))
    gradient = jax.jit(jax.grad(lambda weights: run(weights, x).sum()))
    return gradient.lower(weights).compile().memory_analysis().temp_size_in_bytes / 1e6


def written_out(block):
    def run(weights, x):
        for number in range(16):
            x = block(x, weights[number])
        return x

    return run


def scanned(block):
    return lambda weights, x: jax.lax.scan(lambda x, w: (block(x, w), None), x, weights)[0]


print("versions: jaxlib", jax.lib.__version__)
for name, form in (("written out", written_out), ("scan", scanned)):
    plain, saving = megabytes(form(block)), megabytes(form(jax.checkpoint(block)))
    print(f"{name}: {plain:.1f} MB, with jax.checkpoint {saving:.1f} MB: {'less' if saving < plain / 2 else 'no less'}")
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/memory.py")
echo "$found"
grep -q '^written out: .* no less$' <<<"$found"
grep -q '^scan: .*: less$' <<<"$found"
