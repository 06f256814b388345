#!/usr/bin/env bash
# safetensors 0.8.0 with NumPy: a transposed view is saved with its shape, but in the order of its
# memory, so that other values come back, without a warning.
#
# Expected: the values as they are seen, or an error (known before it was run: guesses.md, 60).
# Happens (2026-11-28): of [[0, 1, 2], [3, 4, 5]] transposed, [[0, 1], [2, 3], [4, 5]] comes back; of
# every second of twelve numbers, the first six.
# Exits 0 while that is so, 1 once it changes. About 50 MB.
# Counter: COPY=1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "safetensors==${SAFETENSORS:-0.8.0}" numpy==2.4.6
cat >"$folder/save.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load, save

print("versions: safetensors", version("safetensors"))
numbers = np.arange(12, dtype=np.float32)
for name, view in (("transposed", numbers[:6].reshape(2, 3).T), ("every second", numbers[::2])):
    given = np.ascontiguousarray(view) if sys.argv[1:] else view
    back = load(save({"x": given}))["x"]
    print(f"{name}: {view.tolist()} comes back as {back.tolist()}")
PYTHON
found=$("$folder/env/bin/python" "$folder/save.py" ${COPY:-})
echo "$found"
grep -q '^transposed: .* comes back as \[\[0.0, 1.0\], \[2.0, 3.0\], \[4.0, 5.0\]\]$' <<<"$found"
grep -q '^every second: .* comes back as \[0.0, 1.0, 2.0, 3.0, 4.0, 5.0\]$' <<<"$found"
