#!/usr/bin/env bash
# tensorstore 0.1.86 with zarr3 on S3 (moto 5.2.5 on loopback): two writers that each write half of one
# chunk at the same time both succeed, and both halves are there.
#
# Expected (guesses.md, 51): the second overwrites the whole chunk with what it read before, without
# an error, as an object store knows no locks.
# Happens (2026-11-28): in none of 20 races a half is lost: a write names the version that it read,
# and is done again where the store has another.
# Exits 0 while that is so, 1 once it changes; with SECOND=0 both write the first half. About 250 MB.
# Counter: SECOND=0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "tensorstore==${TENSORSTORE:-0.1.86}" "moto[server]==5.2.5"
cat >"$folder/race.py" <<'PYTHON'
import os
import sys
from importlib.metadata import version

os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
import botocore.session
import numpy as np
import tensorstore
from moto.server import ThreadedMotoServer

print("versions: tensorstore", version("tensorstore"))
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
botocore.session.get_session().create_client("s3", "us-east-1", endpoint_url=url).create_bucket(
    Bucket="bucket"
)
store = {
    "driver": "s3", "bucket": "bucket", "path": "array/", "endpoint": url,
    "aws_region": "us-east-1", "aws_credentials": {"type": "environment"},
}
new = {"shape": [4], "data_type": "float32", "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}}}


def opened(**how):
    return tensorstore.open(
        {"driver": "zarr3", "kvstore": store}, context=tensorstore.Context(), **how
    ).result(timeout=60)


tensorstore.open({"driver": "zarr3", "kvstore": store, "metadata": new}, create=True).result(timeout=60)
second, whole = int(sys.argv[1]), 0
for number in range(1, 21):
    one, two = opened(), opened()
    writes = [one[0:2].write(np.full(2, number, np.float32))]
    writes += [two[second : second + 2].write(np.full(2, number, np.float32))]
    for write in writes:
        write.result(timeout=60)
    whole += bool((opened().read().result(timeout=60) == number).all())
print(f"{whole} of 20 races left both halves")
server.stop()
PYTHON
found=$("$folder/env/bin/python" "$folder/race.py" "${SECOND:-2}" 2>/dev/null)
echo "$found"
grep -qx '20 of 20 races left both halves' <<<"$found"
