#!/usr/bin/env bash
# array_record 0.8.6: ArrayRecordDataSource holds a file open for every shard that it has read of,
# until it is dropped.
#
# Expected (guesses.md, 37): files are opened when they are needed, and a few are kept.
# Happens (2026-11-28): after one record of each of 500 shards there are 500 more open files. With the
# usual limit of 1,024 files a process, shuffled data of more shards than that fails in the middle of
# the first pass; a data loader of several sources adds them up.
# Exits 0 while that is so, 1 once it changes. About 60 MB.
# Counter: SHARDS=1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "array-record==${ARRAY_RECORD:-0.8.6}"
cat >"$folder/shards.py" <<'PYTHON'
import os
import sys
from importlib.metadata import version

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

print("versions: array-record", version("array-record"))
folder, shards = sys.argv[1], int(sys.argv[2])
paths = [f"{folder}/{number:03d}.array_record" for number in range(shards)]
for path in paths:
    writer = ArrayRecordWriter(path, "group_size:1")
    for number in range(500 // shards):
        writer.write(b"a record")
    writer.close()
source = ArrayRecordDataSource(paths)
before = len(os.listdir("/proc/self/fd"))
read = sum(len(source[place]) > 0 for place in range(len(source)))
print(f"{read} records of {shards} shards read: {len(os.listdir('/proc/self/fd')) - before} more files open")
PYTHON
mkdir "$folder/data"
found=$("$folder/env/bin/python" "$folder/shards.py" "$folder/data" "${SHARDS:-500}")
echo "$found"
grep -qx '500 records of 500 shards read: 500 more files open' <<<"$found"
