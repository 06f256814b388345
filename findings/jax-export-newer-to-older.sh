#!/usr/bin/env bash
# jax.export: what jax 0.12.0.1 exports for a CPU, 0.10.2 reads and runs.
#
# Expected (guesses.md, 22): refused by the version of the calling convention; the documentation
# promises three weeks of forward compatibility, and these two are five months apart.
# Happens (2026-11-28): both write version 10 of the calling convention, and the older one runs what
# the newer one wrote (tanh of a product, summed: 15.9893). Both need flatbuffers, which neither
# requires. 0.5.3 refuses it ("deserialize unsupported version 12"; it needs absl-py, too).
# Exits 0 while that is so, 1 once it changes. Needs Python 3.12 (PYTHON=...). About 700 MB.
# Counter: OLDER=0.5.3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
older=${OLDER:-0.10.2}
for version in "$older" 0.12.0.1; do
    "${PYTHON:-python3.12}" -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q "jax==$version" "jaxlib==$version" flatbuffers==25.12.19 absl-py==2.5.1
done
cat >"$folder/write.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import export

exported = export.export(jax.jit(lambda x: jnp.tanh(x @ x).sum()))(jnp.ones((4, 4)))
open(sys.argv[1], "wb").write(exported.serialize())
print("jax", jax.__version__, "writes calling convention", exported.calling_convention_version)
PYTHON
cat >"$folder/read.py" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
from jax import export

exported = export.deserialize(open(sys.argv[1], "rb").read())
print("jax", jax.__version__, f"reads it: {float(exported.call(jnp.ones((4, 4)))):.4f}")
PYTHON
export JAX_PLATFORMS=cpu
"$folder/0.12.0.1/bin/python" "$folder/write.py" "$folder/program"
echo "versions: jax 0.12.0.1 to $older"
found=$("$folder/$older/bin/python" "$folder/read.py" "$folder/program")
echo "$found"
[ "$found" = "jax $older reads it: 15.9893" ]
