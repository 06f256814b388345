#!/usr/bin/env bash
# grain 0.2.18: with one seed, datasets of nearly the same length are shuffled into nearly the same order.
#
# Expected (guesses.md, 32): the orders of n and n + 1 records have nothing to do with each other, as
# with a permutation of NumPy or torch.
# Happens (2026-11-28): of the first 1,000 places of 1,000 and of 1,010 records, seed 1, 990 hold the
# same record; of 1,000 and 1,100, 909. So two datasets of one length (questions and answers, a
# dataset and its next edition) are in step wherever they have one seed.
# Exits 0 while that is so, 1 once it changes. About 130 MB.
# Counter: SEED=2
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


def order(records, seed):
    shuffled = grain.MapDataset.range(records).shuffle(seed=seed)
    return [shuffled[place] for place in range(1_000)]


for more in (1_010, 1_100):
    pairs = zip(order(1_000, 1), order(more, int(sys.argv[1])))
    print(f"1000 and {more} records: {sum(a == b for a, b in pairs)} of 1000 places alike")
PYTHON
found=$("$folder/env/bin/python" "$folder/shuffle.py" "${SEED:-1}" 2>/dev/null)
echo "$found"
grep -qx '1000 and 1010 records: 990 of 1000 places alike' <<<"$found"
grep -qx '1000 and 1100 records: 909 of 1000 places alike' <<<"$found"
