#!/usr/bin/env bash
# XLA's cost analysis (jaxlib 0.10.2 and 0.12.0.1, CPU): the body of a loop counts once, however often
# it runs, also where the number is known when it is compiled.
#
# Expected (guesses.md, 16 and 17): ten times one product's for a scan of ten; once where the bound is
# an argument.
# Happens (2026-11-28): 524,288 FLOPs for a product, 524,290 for a scan of ten of them, over ten
# matrices or over one; as much for a fori_loop whose bound is an argument. Written out in Python,
# ten products count ten times.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one. About 350 MB.
# Counter: UNROLL=10
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}"
cat >"$folder/cost.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import lax


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def unrolled(x, many):
    for w in many:
        x = x @ w
    return x


print("versions: jaxlib", jax.lib.__version__)
unroll = int(sys.argv[1])
x, w, many = jnp.ones((64, 64)), jnp.ones((64, 64)), jnp.ones((10, 64, 64))
one = flops(lambda x, w: x @ w, x, w)
for name, count in (
    ("ten written out", flops(unrolled, x, many)),
    ("scan of ten", flops(lambda x, many: lax.scan(lambda c, w: (c @ w, None), x, many, unroll=unroll)[0], x, many)),
    ("fori_loop", flops(lambda x, w, n: lax.fori_loop(0, n, lambda i, c: c @ w, x), x, w, 10)),
):
    print(f"{name}: {count / one:.2f} products")
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/cost.py" "${UNROLL:-1}")
echo "$found"
grep -qx 'ten written out: 10.00 products' <<<"$found"
grep -qx 'scan of ten: 1.00 products' <<<"$found"
grep -qx 'fori_loop: 1.00 products' <<<"$found"
