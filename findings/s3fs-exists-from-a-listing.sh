#!/usr/bin/env bash
# s3fs 2026.9.0 against an object store on loopback (moto 5.2.5): after a folder was listed once,
# `exists` is False for a file that another program has put there since, and `open` of one that was
# replaced fails.
#
# Expected (guesses.md, 53): `cat` gives the new bytes; only `ls` is as it was, from its cache.
# Happens (2026-11-28): so it is, but `exists` and `info` are answered from the listing, too, for as
# long as the process lives (its listings expire never), and reading by `open` ends with
# FileExpired, "no longer exists", of a file that is there. A loop that waits for a file by `exists`
# waits for ever; `invalidate_cache()` helps.
# Exits 0 while that is so, 1 once it changes. About 200 MB.
# Counter: CACHED=
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "s3fs==${S3FS:-2026.9.0}" "moto[server]==5.2.5"
cat >"$folder/exists.py" <<'PYTHON'
import os
import sys
from importlib.metadata import version

os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
import botocore.session
import s3fs
from moto.server import ThreadedMotoServer

print("versions: s3fs", version("s3fs"))
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
other = botocore.session.get_session().create_client("s3", "us-east-1", endpoint_url=url)
other.create_bucket(Bucket="bucket")
other.put_object(Bucket="bucket", Key="folder/one", Body=b"old")
files = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=sys.argv[1] == "cached")
files.ls("bucket/folder")
for name in ("one", "two"):
    other.put_object(Bucket="bucket", Key=f"folder/{name}", Body=b"newer")
print("cat:", files.cat("bucket/folder/one"))
print("exists:", files.exists("bucket/folder/two"))
print("size:", files.info("bucket/folder/one")["size"])
try:
    print("open:", files.open("bucket/folder/one").read())
except OSError as error:
    print("open:", type(error).__name__)
server.stop()
PYTHON
found=$("$folder/env/bin/python" "$folder/exists.py" "${CACHED-cached}" 2>/dev/null)
echo "$found"
grep -qx "cat: b'newer'" <<<"$found"
grep -qx 'exists: False' <<<"$found"
grep -qx 'size: 3' <<<"$found"
grep -qx 'open: FileExpired' <<<"$found"
