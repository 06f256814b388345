#!/usr/bin/env bash
# XLA on a CPU (jaxlib 0.10.2; 0.11.2 and 0.12.0.1 alike): inside jit, a matrix product with a large
# constant matrix whose result is reduced at once is wrong, without a warning.
#
# Expected (the guess, written before it was run): [8, 512] ones times a constant [512, 512] of ones
# sums to 2,097,152, in jit as outside; were a library's kernel wrong, it would be for every size.
# Happens (2026-11-28, x86-64 with AVX-512, 2 cores): with 448 columns the sum is right. With 512 and
# more it is nan, or once 2.5e38, and the maximum is -inf, as if nothing had been written into what
# is reduced. The
# same product is right when the constant is an argument of the function, when nothing reduces it,
# and when YNNPACK is not used (XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=): the
# optimized program is one "__ynn_fusion" of broadcast, dot and reduce.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one.
# Counter: XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}" numpy==2.4.6
cat >"$folder/product.py" <<'PYTHON'
import jax
import jax.numpy as jnp


def reduced(size, reduce):
    """All ones: the sum is 8 size^2, the maximum size."""
    return float(jax.jit(lambda a: reduce(a @ jnp.ones((size, size))))(jnp.ones((8, size))))


print("versions: jaxlib", jax.lib.__version__)
for size in (448, 512, 1024):
    found = reduced(size, jnp.sum), reduced(size, jnp.max)
    right = "right" if found == (8 * size**2, size) else "wrong"
    print(f"{size}: {right}, sum {found[0]:g} of {8 * size**2:g}, maximum {found[1]:g} of {size}")
a, w = jnp.ones((8, 512)), jnp.ones((512, 512))
print("512, the matrix an argument: sum", f"{float(jax.jit(lambda a, w: (a @ w).sum())(a, w)):g}")
print("512, in jit without a reduction: maximum", f"{float(jax.jit(lambda a: a @ jnp.ones((512, 512)))(a).max()):g}")
PYTHON
export JAX_PLATFORMS=cpu
found=$("$folder/env/bin/python" "$folder/product.py")
echo "$found"
without=$(XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= "$folder/env/bin/python" "$folder/product.py")
printf 'without YNNPACK:\n%s\n' "$without"
grep -q '^448: right' <<<"$found"
grep -q '^512: wrong' <<<"$found"
grep -q '^512: right' <<<"$without"
grep -q 'argument: sum 2.09715e+06$' <<<"$found"
grep -q 'reduction: maximum 512$' <<<"$found"
