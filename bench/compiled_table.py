"""Tables of docs/scaling.md from what `jaxchat doctor --compile KIND --stages base --json` wrote.

    for tier in 100 300 1000 gpt2; do for kind in h100 a100 h200 b200; do
        python -m jaxchat doctor --tier $tier --compile $kind --stages base --json >$tier.$kind.json
    done; done
    python bench/compiled_table.py *.json

A card with measured ceilings gets a line of its step in full, others what fits and how long a step
is at least.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.train.compiled.targets import MEASURED, TARGETS

Found = Mapping[str, Any]  # a file's
FULL = (
    "tier", "memory by XLA (ours)", "products", "attention", "elementwise", "collectives",
    "a step: products + attention + elementwise", "MFU", "recomputed", "compiled in",
)  # fmt: skip
BRIEF = (
    "tier", "device", "memory by XLA (ours)", "fits", "elementwise", "at least", "as an H100's",
    "recomputed",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args(argv).files]
    measured = [one for one in found if one["ceilings"] == MEASURED]
    others = [one for one in found if one["ceilings"] != MEASURED]
    print(
        "\n".join([*markdown(FULL, map(full, measured)), "", *markdown(BRIEF, map(brief, others))])
    )
    return 0


def full(one: Found) -> tuple[str, ...]:
    """A step in numbers."""
    counts, seconds = one["counts"], one["seconds"]
    parts = " + ".join(_ms(seconds[name]) for name in ("products", "attention", "elementwise"))
    return (
        one["tier"], _memory(one),
        f"{counts['products']}, {_tera(counts['product_flops'])}",
        f"{counts['attention_calls']}, {_tera(counts['attention_flops'])}",
        f"{counts['kernels']:,}, {_giga(counts['fine'] + counts['tanh'])}",
        _collectives(counts["collectives"]),
        f"{_ms(seconds['step'])} ms: {parts}", f"{one['mfu']:.1%}",
        f"{counts['recomputed']}", f"{one['compile_seconds']:.0f} s",
    )  # fmt: skip


def brief(one: Found) -> tuple[str, ...]:
    """Whether a step fits, and its bounds."""
    counts = one["counts"]
    return (
        one["tier"], TARGETS[one["kind"]].name, _memory(one), "yes" if one["fits"] else "NO",
        _giga(counts["fine"] + counts["tanh"]), f"{_ms(one['bound_seconds'])} ms",
        f"{_ms(one['seconds']['step'])} ms, {one['mfu']:.0%}", f"{counts['recomputed']}",
    )  # fmt: skip


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _collectives(found: Sequence[Mapping[str, Any]]) -> str:
    """Number, bytes, and how many have kernels beside them."""
    total = sum(one["times"] for one in found)
    beside = sum(one["times"] for one in found if one["kernels"])
    moved = sum(one["times"] * one["size"] for one in found)
    return f"{total}, {_giga(moved)}; {beside} overlap"


def _memory(one: Found) -> str:
    sizes = (one["memory_bytes"], one["predicted_bytes"]["peak"])
    return "{:.1f} ({:.1f}) GB".format(*(size / 1e9 for size in sizes))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}"


def _giga(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP"


if __name__ == "__main__":
    sys.exit(main())
