#!/usr/bin/env bash
# grain 0.2.18: a window shuffle repeats some records and never gives others, unless the window divides
# the number of records.
#
# Expected (guesses.md, 33): every record once, also where the window is larger than the data.
# Happens (2026-11-28): WindowShuffleMapDataset of 100 records in windows of 64 has 85 different ones
# in its 100 places, of 10 records in windows of 64 it has 5; the places of the last window are drawn
# from a whole window, and what lies beyond the end is taken modulo the length.
# Exits 0 while that is so, 1 once it changes. About 130 MB.
# Counter: RECORDS=128
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "grain==${GRAIN:-0.2.18}"
cat >"$folder/shuffle.py" <<'PYTHON'
import sys
from importlib.metadata import version

import grain
from grain.experimental import WindowShuffleMapDataset

print("versions: grain", version("grain"))
records = int(sys.argv[1])
shuffled = WindowShuffleMapDataset(grain.MapDataset.range(records), window_size=64, seed=3)
found = [shuffled[place] for place in range(len(shuffled))]
print(f"{records} records in windows of 64: {len(found)} places, {len(set(found))} different")
PYTHON
found=$("$folder/env/bin/python" "$folder/shuffle.py" "${RECORDS:-100}" 2>/dev/null)
echo "$found"
grep -qx '100 records in windows of 64: 100 places, 85 different' <<<"$found"
