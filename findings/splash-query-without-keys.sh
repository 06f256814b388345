#!/usr/bin/env bash
# Splash attention (Pallas for TPU, in interpret mode; jax 0.10.2 and 0.12.0.1): a query whose row of
# the mask is empty gets a plausible vector, the mean of the values of one block.
#
# Expected (guesses.md, 21): nan, which a test would notice.
# Happens (2026-11-28): the mean of the values of those blocks of 128 keys that other queries of its
# block see, here the first: exactly, for 128, 256 and 512 keys. With other block sizes it would be
# another vector.
# Exits 0 while that is so, 1 once it changes. JAX=VERSION tries another one. About 350 MB.
# Counter: EMPTY=
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q "jax==${JAX:-0.10.2}" "jaxlib==${JAX:-0.10.2}"
cat >"$folder/splash.py" <<'PYTHON'
import sys

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

print("versions: jax", jax.__version__)
for length in (128, 256, 512):
    mask = np.tril(np.ones((length, length), bool))
    mask[5, :] &= sys.argv[1] != "empty"
    attend = kernel.make_splash_mha(
        masks.MultiHeadMask([masks.NumpyMask(mask)]), head_shards=1, q_seq_shards=1, interpret=True
    )
    q, v = (jax.random.normal(jax.random.key(seed), (1, length, 128)) for seed in (0, 1))
    out, values = np.asarray(attend(q, q, v))[0, 5], np.asarray(v)[0]
    away = abs(out - values[:128].mean(0)).max()
    print(f"{length} keys: finite {np.isfinite(out).all()}, {away:.1e} from the first block's mean")
PYTHON
found=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/splash.py" "${EMPTY-empty}")
echo "$found"
[ "$(grep -cE 'keys: finite True, (0.0e\+00|[0-9.]+e-0[6-9]) from' <<<"$found")" = 3 ]
