"""Peak memory of two commands for a text in one line, and for the same text in many lines.

    python bench/long_lines.py                             100 MB, .txt, stdin, and their gz and zst
    python bench/long_lines.py --bytes 20000000 --json result.json

Each figure is the peak resident memory of `jaxchat tokenizer train` or `jaxchat data prepare` in
its own process. The files differ only in their line ends, which are blanks in the first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow

from jaxchat.runs.tables import table
from jaxchat.tokenizer import Tokenizer

BYTES = 100_000_000
MOST = 1.3  # times as much memory
SUFFIXES = (".txt", ".txt.gz", ".txt.zst")


def words(size: int) -> bytes:
    """Made-up words, common ones more often, twelve a line."""
    draw = random.Random(0)
    some = [
        "".join(draw.choices("etaoinshrdlucmf", k=draw.randrange(1, 10))) for _ in range(20_000)
    ]
    block = "".join(
        word + ("\n" if n % 12 == 11 else " ")
        for n, word in enumerate(
            draw.choices(some, [1 / (n + 1) for n in range(20_000)], k=400_000)
        )
    ).encode()
    return (block * (size // len(block) + 1))[:size]


# A child's peak begins with its parent's: a small process stands between.
WAITER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(status != 0)
"""


def peak(command: list[str], stdin: Path | None = None) -> int:
    """Peak resident memory in bytes of a command that must succeed."""
    with open(stdin or os.devnull, "rb") as file:
        waiter = [sys.executable, "-S", "-c", WAITER, *command]
        return int(subprocess.run(waiter, stdin=file, stdout=subprocess.PIPE, check=True).stdout)


def write(path: Path, data: bytes) -> Path:
    """The bytes, compressed as the name's ending says."""
    if path.suffix == ".gz":
        data = gzip.compress(data, 1)
    elif path.suffix == ".zst":
        data = pyarrow.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


def measure(data: bytes, work: Path) -> dict[str, int]:
    """Peaks of one text, by command and kind of file."""
    jaxchat = [sys.executable, "-m", "jaxchat"]
    train = [*jaxchat, "tokenizer", "train", "--vocab-size", "512"]
    found = {}
    for suffix in SUFFIXES:
        folder = work / suffix.strip(".")
        folder.mkdir()
        path = write(folder / f"a{suffix}", data)
        (folder / "z.txt").write_bytes(data[:1_000_000])  # held out
        out = ["--out", str(work / f"out{suffix}")]
        found[f"tokenizer train, {suffix}"] = peak([*train, str(path), *out])
        options = ["--tokenizer", str(work / "bytes"), "--out", str(work / f"rows{suffix}")]
        found[f"data prepare, {suffix}"] = peak(
            [*jaxchat, "data", "prepare", "--data-dir", str(folder), *options, "--workers", "1"]
        )
        if suffix == ".txt":
            out = ["--out", str(work / "out-stdin")]
            found["tokenizer train, stdin"] = peak([*train, "-", *out], path)
    return found


def main() -> int:
    """Measures and prints; 1 where one line takes more than MOST times as much."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=int, default=BYTES, help="of text")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    data = words(args.bytes)
    peaks = []
    for text in (data, data.replace(b"\n", b" ")):
        with tempfile.TemporaryDirectory() as folder:
            Tokenizer([bytes([byte]) for byte in range(256)]).save(Path(folder) / "bytes")
            peaks.append(measure(text, Path(folder)))
    lines, one = peaks
    rows = [("peak memory", "in lines", "in one line", "ratio")]
    for name, peak_of in lines.items():
        sizes = (f"{bytes_ / 1e6:,.0f} MB" for bytes_ in (peak_of, one[name]))
        rows.append((name, *sizes, f"{one[name] / peak_of:.2f}"))
    print(f"{len(data) / 1e6:,.0f} MB of text", *table(rows), sep="\n")
    if args.json:
        args.json.write_text(json.dumps({"lines": lines, "one": one}, indent=1), encoding="utf-8")
    return int(any(one[name] > MOST * lines[name] for name in lines))


if __name__ == "__main__":
    sys.exit(main())
