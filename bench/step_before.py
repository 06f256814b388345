"""A training step of this checkout and of another one, in turns.

    python bench/step_before.py --before CHECKOUT [--turns 7] [--depths 4,6] [...]

Each turn is a process of `bench/train_step.py --json` of each checkout, with the arguments given
beside these. The other checkout needs its compiled extension (`jaxchat/_bpe*.so`). Printed are
medians and spreads of the turns' medians. What a model has learned: `bench/loss_curve.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints, a line for each depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--depths", default="4,6", help="as 4,6")
    args, others = parser.parse_known_args(argv)
    for depth in args.depths.split(","):
        found: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(args.turns):
            for side, checkout in (("before", args.before), ("now", HERE)):
                found[side].append(step_ms(checkout.resolve(), ["--depth", depth, *others]))
        before, now = (statistics.median(found[side]) for side in ("before", "now"))
        print(
            f"d{depth}: {show(found['before'])} -> {show(found['now'])}, {before / now:.2f} times"
        )
    return 0


def step_ms(checkout: Path, arguments: Sequence[str]) -> float:
    """A step's median milliseconds in a process of its own."""
    command = [sys.executable, "bench/train_step.py", "--json", *arguments]
    # Huge pages for both: not every checkout asks for them by itself
    huge = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    environment = {**huge, **os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {checkout} failed: {done.stderr.strip()[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["figures"]["jaxchat"]["step_ms"])


def show(values: Sequence[float]) -> str:
    """The median, and from least to most."""
    return f"{statistics.median(values):,.1f} ms ({min(values):,.1f} to {max(values):,.1f})"


if __name__ == "__main__":
    sys.exit(main())
