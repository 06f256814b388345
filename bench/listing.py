"""Time to list many small files and group them into shards, for two numbers of files.

python bench/listing.py                # 40,000 and 400,000, in a temporary folder
python bench/listing.py 1000 10000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.own import grouped, local_inputs

MEMORY = Path("/dev/shm")  # a folder in memory, if there is one
IN_FOLDER = 1_000  # files
ROW_TOKENS = 2_049


def main() -> int:
    """Prints the seconds of both sizes, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=int, nargs="*", default=[40_000, 400_000])
    counts = parser.parse_args().counts
    measured = [measure(count) for count in counts]
    for what in measured[0]:
        few, many = measured[0][what], measured[-1][what]
        print(
            f"{what:<42} {counts[0]:,}: {few:.2f} s   {counts[-1]:,}: {many:.2f} s   "
            f"ratio {many / few:.1f}"
        )
    return 0


def measure(count: int) -> dict[str, float]:
    """Seconds of each step for `count` files, which are created first."""
    where = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="listing.", dir=where) as name:
        folder = Path(name) / "text"
        make(folder, count)
        TextFiles([str(folder)])  # metadata are warm from now on
        began, cpu = time.perf_counter(), time.process_time()
        files = TextFiles([str(folder)])
        listed = time.perf_counter()
        groups = grouped(files.sizes, ROW_TOKENS)
        done, spent = time.perf_counter(), time.process_time() - cpu
        assert sum(map(len, groups)) == count, "a file is in no shard"
        seconds = {
            "listed": listed - began,
            "grouped": done - listed,
            "listed and grouped": done - began,
            "listed and grouped, of the processor": spent,
        }
        time.sleep(2.1)  # younger files are read again
        for what in ("all of it, the files read", "all of it, known by size and date"):
            began = time.perf_counter()
            local_inputs(folder, ROW_TOKENS, Path(name) / "home")
            seconds[what] = time.perf_counter() - began
    return seconds


def make(folder: Path, count: int) -> None:
    """Files of 40 to 400 bytes, IN_FOLDER in each folder."""
    for number in range(count):
        parent = folder / f"{number // IN_FOLDER:05d}"
        if number % IN_FOLDER == 0:
            parent.mkdir(parents=True)
        with open(f"{parent}/{number % IN_FOLDER:05d}.txt", "w", encoding="utf-8") as file:
            file.write(f"file {number} of a large folder of small ones\n" * (1 + number % 10))


if __name__ == "__main__":
    sys.exit(main())
