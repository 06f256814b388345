#!/usr/bin/env bash
# grain 0.2.18: beyond some 2^34 records, `shuffle` is no longer even: whole parts of the data come in
# none of the first thousands of places, without a warning.
#
# Expected (guesses.md, 29): more than 2^31 records are refused, as the index is of 32 bits.
# Happens (2026-11-28): 2^40 places (a dataset that is indexed by the token) are shuffled, and of the
# first 3,000 none lies in the first two tenths of the data, nor in the sixth and seventh; seed 1.
# With 2^32 records each tenth has 268 to 333.
# Exits 0 while that is so, 1 once it changes. About 130 MB.
# Counter: BITS=32
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "grain==${GRAIN:-0.2.18}"
cat >"$folder/shuffle.py" <<'PYTHON'
import sys
from importlib.metadata import version

import grain

print("versions: grain", version("grain"))
records = 1 << int(sys.argv[1])
shuffled = grain.MapDataset.range(records).shuffle(seed=1)
tenths = [0] * 10
for place in range(3_000):
    tenths[shuffled[place] * 10 // records] += 1
print(f"of the first 3000 of 2^{sys.argv[1]}, by tenths of the data: {tenths}")
print("tenths without any:", tenths.count(0))
PYTHON
found=$("$folder/env/bin/python" "$folder/shuffle.py" "${BITS:-40}" 2>/dev/null)
echo "$found"
grep -qx 'tenths without any: 4' <<<"$found"
