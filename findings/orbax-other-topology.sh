#!/usr/bin/env bash
# Orbax 0.12.8 (jax 0.10.2): a checkpoint that was saved on 8 devices is refused on one, unless the
# target names a sharding; that it names shapes and types is not enough.
#
# Expected (guesses.md, 15): restored onto the one device there is, with a warning.
# Happens (2026-11-28): ValueError "Topology mismatch detected", without a target and with one of
# ShapeDtypeStructs alone. With a sharding in the target it is restored.
# Exits 0 while that is so, 1 once it changes. ORBAX=VERSION tries another one. About 450 MB.
# Counter: DEVICES=1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 "orbax-checkpoint==${ORBAX:-0.12.8}"
cat >"$folder/save.py" <<'PYTHON'
import sys

import jax
import orbax.checkpoint as ocp

mesh = jax.make_mesh((len(jax.devices()),), ("x",))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], {"w": jax.device_put(jax.numpy.arange(16.0), rows)})
PYTHON
cat >"$folder/restore.py" <<'PYTHON'
import sys
from importlib.metadata import version

import jax
import orbax.checkpoint as ocp

print("versions: orbax-checkpoint", version("orbax-checkpoint"))
shape = jax.ShapeDtypeStruct((16,), "float32")
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
placed = jax.ShapeDtypeStruct((16,), "float32", sharding=here)
with ocp.StandardCheckpointer() as checkpointer:
    for name, target in (("no target", None), ("shape", {"w": shape}), ("sharding", {"w": placed})):
        try:
            found = checkpointer.restore(sys.argv[1], target)["w"]
            print(f"{name}: restored, sum {found.sum():g}")
        except ValueError as error:
            print(f"{name}: {str(error).partition('.')[0]}")
PYTHON
export JAX_PLATFORMS=cpu
XLA_FLAGS=--xla_force_host_platform_device_count=${DEVICES:-8} "$folder/env/bin/python" "$folder/save.py" "$folder/saved"
found=$("$folder/env/bin/python" "$folder/restore.py" "$folder/saved")
echo "$found"
grep -qx 'no target: Topology mismatch detected' <<<"$found"
grep -qx 'shape: Topology mismatch detected' <<<"$found"
grep -qx 'sharding: restored, sum 120' <<<"$found"
