"""The tables of docs/screening.md, from bench/screening.jsonl.

    python bench/screen_table.py [--write]

With --write they are put into the page, between its marks; else they are printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from screen import EQUAL_BYTES, bits_of, read_results
from screen_pairs import Difference
from screen_plan import (
    COMPARED,
    CONFIRMED,
    FRESH,
    PRESETS,
    SEEDS,
    STEPS,
    TUNING_SEED,
    WIDE_SEEDS,
    candidates,
    chosen,
    paired,
)

PAGE = Path(__file__).parents[1] / "docs" / "screening.md"
BEGIN = "<!-- tables: python bench/screen_table.py --write -->"
END = "<!-- end of tables -->"
SAID = {
    "better": "fewer bits than the baseline",
    "worse": "more bits than the baseline",
    "unclear": "No difference can be shown",
    "diverged": "diverged",
}
Bits = Mapping[tuple[str, int, int], float]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown's."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def tuning_table(bits: Bits) -> str:
    """Bits per byte of each choice of rates; the best is bold."""
    lines = []
    for preset in PRESETS:
        found = {k[0]: b for k, b in bits.items() if k[2] == TUNING_SEED and preset in k[0]}
        best = chosen(preset, bits)
        for name, value in found.items():
            scale, adam, decay = map(float, name.split()[1:])
            mark = "**" if best is not None and name == best.name(preset) else ""
            lines.append(
                [preset, f"{scale:g}", f"{adam:g}", f"{decay:g}", f"{mark}{value:.4f}{mark}"]
            )
    return table(["preset", "s", "head and embeddings x", "decay", "bits per byte, d1"], lines)


def baseline_table(bits: Bits) -> str:
    """The baseline at the whole and half the horizon, with the slope between them."""
    lines = []
    for depth in STEPS:
        line = [str(depth)]
        for name in ("baseline", "half"):
            values = [bits[name, depth, seed] for seed in SEEDS if (name, depth, seed) in bits]
            mean = f"{statistics.fmean(values):.4f}" if values else "not run"
            spread = f" ({statistics.stdev(values):.4f})" if len(values) > 1 else ""
            line.append(mean + spread)
        slope = slope_of(bits, [depth])
        lines.append([*line, "" if slope is None else f"{slope:.3f}"])
    head = ["depth", "whole horizon (deviation of seeds)", "half", "d ln(bits) / d ln(FLOPs)"]
    return table(head, lines)


def slope_of(bits: Bits, depths: Sequence[int]) -> float | None:
    """d ln(bits per byte) / d ln(FLOPs) of the baseline; None while rows are missing."""
    keys = [(depth, seed) for depth in depths for seed in SEEDS]
    if any((name, *key) not in bits for name in ("baseline", "half") for key in keys):
        return None
    logs = [math.log(bits["baseline", *key] / bits["half", *key]) for key in keys]
    return statistics.fmean(logs) / math.log(2)


def comparison_table(bits: Bits, records: Sequence[dict[str, Any]]) -> str:
    """One line for every registered comparison, run or not."""
    flops = {(r["variant"], r["depth"]): r["flops"] for r in records}
    slope, lines = slope_of(bits, list(STEPS)), []
    for name in COMPARED:
        found = paired(bits, name)
        if found is None:
            seeds = WIDE_SEEDS if name == "powers" else SEEDS
            wanted = len(seeds) * (1 if name == "powers" else len(STEPS))
            there = sum((name, d, s) in bits for d in STEPS for s in seeds)
            state = "not complete" if there else "not run"
            lines.append([f"`{name}`", f"{there} of {wanted} rows", *[""] * 4, state])
        else:
            lines.append(_line(name, found, len(COMPARED), slope, _depths(bits, name, SEEDS)))
            if name in EQUAL_BYTES:  # no multiplier: it would be far beyond the baseline's horizon
                ratios = (flops[name, d] / flops["baseline", d] for d in STEPS)
                lines[-1][5] = f"at {' and '.join(f'{x:.2f}' for x in ratios)} times the FLOPs"
    return table(_head(len(COMPARED)), lines)


def confirmation_table(bits: Bits) -> str:
    """The switches that are run again with fresh seeds; "" before they are known."""
    slope, lines = slope_of(bits, list(STEPS)), []
    for name in candidates(bits):
        found = paired(bits, name, FRESH)
        if found is not None:
            own = None if name in EQUAL_BYTES else slope
            lines.append(_line(name, found, CONFIRMED, own, _depths(bits, name, FRESH)))
    return table(_head(CONFIRMED), lines) if lines else "No switch has been run again yet."


def _head(comparisons: int) -> list[str]:
    interval = f"mean, with its interval of {100 * (1 - 0.05 / comparisons):.4g}%"
    return ["variant", "d1", "d2", interval, "deviation of a pair", "multiplier", "conclusion"]


def _depths(bits: Bits, name: str, seeds: Sequence[int]) -> list[str]:
    """The mean difference at each depth."""
    if name == "powers":
        return ["", ""]
    means = (
        statistics.fmean(
            math.log(bits[name, depth, seed] / bits["baseline", depth, seed]) for seed in seeds
        )
        for depth in STEPS
    )
    return [f"{100 * mean:+.2f}%" for mean in means]


def _line(
    name: str, found: Difference, comparisons: int, slope: float | None, depths: Sequence[str]
) -> list[str]:
    half = found.half(comparisons)
    ends = found.mean - half, found.mean + half
    multiplier = ""
    if slope and name != "powers":  # that of the baseline's width
        value, *around = (math.exp(x / slope) for x in (found.mean, *ends))
        multiplier = f"{value:.2f} [{min(around):.2f}, {max(around):.2f}]"
    return [
        f"`{name}`",
        *depths,
        f"{100 * found.mean:+.2f}% [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]",
        f"{100 * found.deviation:.2f}%",
        multiplier,
        SAID[found.verdict(comparisons)],
    ]


def tables(records: Sequence[dict[str, Any]]) -> str:
    """All tables of the page."""
    bits = bits_of(records)
    hours = sum(record["seconds"] for record in records) / 3600
    loads = [record["load"] for record in records] or [0.0]
    return "\n\n".join([
        f"{len(records)} rows in {hours:.1f} hours of a loaded machine (2 cores, load "
        f"{min(loads):.0f} to {max(loads):.0f}).",
        "**Rates**", tuning_table(bits),
        "**Baseline**", baseline_table(bits),
        f"**Differences of ln(bits per byte)**, seeds 0 to 2 (`powers`: 0 to 5), {len(COMPARED)} "
        "comparisons",
        comparison_table(bits, records),
        f"**Confirmation**, seeds 3 to 5, {CONFIRMED} comparisons",
        confirmation_table(bits),
    ])  # fmt: skip


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/screening.md")
    made = tables(read_results())
    if not parser.parse_args().write:
        print(made)
        return
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
