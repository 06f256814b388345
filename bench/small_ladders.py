"""The tables and the plot of docs/small_ladders.md, from the records in bench/ladders/.

    python bench/small_ladders.py [--keep HOME] [--write]

bench/ is a home with the recipes and rungs of five ladders, as `jaxchat ladder show --home bench`
and `compare` read them. With --keep they are first copied from the home that they were trained in
(by bench/small_ladders.sh); with --write tables and plot are put into docs/, else they are printed.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from screen_pairs import difference
from screen_table import SAID, table

from jaxchat import paths
from jaxchat.runs.ladder import recipe, results, tables
from jaxchat.runs.ladder.results import Ladder
from jaxchat.runs.report import plots

HOME = Path(__file__).parent
DOCS = HOME.parent / "docs"
PAGE, PLOT = DOCS / "small_ladders.md", DOCS / "images" / "small_ladders.svg"
BEGIN = "<!-- tables: python bench/small_ladders.py --write -->"
END = "<!-- end of tables -->"
COMPARED = (  # a title, the baseline, its variants
    ("Multipliers, question 1", "september", ("modern", "classic", "smear", "vocab4k")),
    ("A null comparison, question 3", "september", ("september_fresh",)),
    ("Multipliers on fresh seeds, question 4", "september_fresh", ("modern_fresh",)),
)
PAIRED = (  # that have about the baseline's FLOPs at a depth
    ("Pairs, question 2", "september", ("modern", "classic", "smear")),
    ("Pairs on fresh seeds, question 4", "september_fresh", ("modern_fresh",)),
)
DEPTHS, PAIRS = (1, 2, 3), 9  # of pairs, and how many a variant has
COLOURS = {"a": "#0f6a73", "b": "#b4531a", "mid": "#8f9400", "rl": "#a03468", "sft": "#4a6487",
           "other": "#8b8f96"}  # fmt: skip


def keep(home: Path) -> None:
    """Copies what there is of the ladders' records from a home."""
    for name in recipe.names(home):
        source, target = recipe.folder(home, name), recipe.folder(HOME, name)
        for path in (source / recipe.RECORD, *source.glob(f"{results.RUNGS}/*.json")):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def there() -> dict[str, Ladder]:
    """The ladders of which there is a run, by name, in the order of `COMPARED`."""
    order = dict.fromkeys(name for _, first, others in COMPARED for name in (first, *others))
    found = [results.read_ladder(HOME, name) for name in order if name in recipe.names(HOME)]
    return {ladder.name: ladder for ladder in found if ladder.runs}


def rung_table(ladders: Sequence[Ladder]) -> str:
    """A line for each depth of each ladder."""
    lines = list[list[str]]()
    for ladder in ladders:
        # passes were not known of a folder of shards when these ladders were trained
        head, *rows = (_without(row, 3, 8, 9) for row in tables.rung_rows(results.to_json(ladder)))
        lines += [[f"`{ladder.name}`", *row] for row in rows]
    return table(["ladder", *head], lines)


def multiplier_table(baseline: Ladder, others: Sequence[Ladder]) -> str:
    """The multipliers of all variants, and what is concluded."""
    compared = results.compare(baseline, others)
    head, *rows = (_without(row, 5) for row in tables.multiplier_rows(compared))
    said = [f"- {tables.conclusion(baseline.name, variant)}" for variant in compared["variants"]]
    level = (
        f"Intervals are widened by the {compared['misfit']:.1%} of FLOPs by which the frontier of "
        f"{baseline.name} misses one of its own rungs at most. All {compared['comparisons']} "
        "comparisons hold together in 95% of cases: each has the level "
        f"{compared['level']:.2%} (Bonferroni)."
    )
    return "\n\n".join([table(head, rows), "\n".join(said), level])


def _without(row: Sequence[str], *columns: int) -> list[str]:
    """Times say nothing: the load of the machine was 12 to 29."""
    return [cell for column, cell in enumerate(row) if column not in columns]


def pairs_of(
    baseline: Ladder, other: Ladder, slope: float
) -> tuple[dict[int, list[tuple[float, float]]], list[float]]:
    """Bits per byte of both by depth, the other's at the baseline's FLOPs; its FLOPs over those."""
    own = {(run["depth"], run["seed"]): run for run in baseline.runs}
    pairs, ratios = dict[int, list[tuple[float, float]]](), list[float]()
    for run in other.runs:
        against = own.get((run["depth"], run["seed"]))
        if against is not None and run["depth"] in DEPTHS:
            ratios.append(run["flops"] / against["flops"])
            bits = run["bits_per_byte"] * ratios[-1] ** -slope
            pairs.setdefault(run["depth"], []).append((bits, against["bits_per_byte"]))
    return pairs, ratios


def pair_table(baseline: Ladder, others: Sequence[Ladder]) -> str:
    """Differences at equal depth and, by the frontier's slope, at equal FLOPs."""
    frontier, lines = results.frontier_of(baseline, 1), list[list[str]]()
    slope, count = frontier.slope(frontier.middle), len(others)
    for other in others:
        pairs, ratios = pairs_of(baseline, other, slope)
        if len(ratios) < PAIRS:
            lines.append([f"`{other.name}`", *[""] * 7, "not complete"])
            continue
        found = difference(pairs)
        ends = found.mean - found.half(count), found.mean + found.half(count)
        value, *around = (math.exp(x / slope) for x in (found.mean, *ends))
        means = (statistics.fmean(math.log(v / b) for v, b in pairs[depth]) for depth in DEPTHS)
        lines.append([
            f"`{other.name}`", f"{min(ratios):.2f} to {max(ratios):.2f}",
            *(f"{100 * mean:+.2f}%" for mean in means),
            f"{100 * found.mean:+.2f}% [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]",
            f"{100 * found.deviation:.2f}%",
            f"{value:.2f} [{min(around):.2f}, {max(around):.2f}]",
            SAID[found.verdict(count)],
        ])  # fmt: skip
    level = f"{100 * (1 - 0.05 / count):.4g}%"
    head = ["variant", "FLOPs, times the baseline's", *(f"d{depth}" for depth in DEPTHS),
            f"mean, with its interval of {level}", "deviation of a pair", "as a multiplier",
            "conclusion"]  # fmt: skip
    known = f"The slope of the frontier of {baseline.name} is {slope:.4f}, taken as known."
    return f"{table(head, lines)}\n\n{known}"


def made(ladders: Mapping[str, Ladder]) -> str:
    """All tables of the page; a comparison of which a ladder is missing is left out."""
    parts = ["**Rungs**", rung_table([*ladders.values()])]
    for compared, render in ((COMPARED, multiplier_table), (PAIRED, pair_table)):
        for title, first, others in compared:
            if {first, *others} <= ladders.keys():
                parts += [f"**{title}**", render(ladders[first], [ladders[x] for x in others])]
    shown = map(results.to_json, ladders.values())
    notes = "\n".join(f"- {note}" for each in shown for note in tables.notes_of(each))
    return "\n\n".join([*parts, *([notes] if notes else [])])


def drawn(ladders: Sequence[Ladder]) -> str:
    """Bits per byte over FLOPs as an image: a dot a run, and the frontier of the first ladder."""
    baseline = ladders[0].name
    line = results.frontier_of(ladders[0], 1)
    series = [
        plots.Series(
            f"{ladder.name}, seed {seed}", [float(run["flops"]) for run in runs],
            [float(run["bits_per_byte"]) for run in runs], style, "dots",
        )
        for ladder, style in zip(ladders, COLOURS, strict=False)
        for seed in ladder.record["seeds"]
        if (runs := [run for run in ladder.runs if run["seed"] == seed])
    ]  # fmt: skip
    xs = [math.exp(x) for x in (line.low, line.high)]
    ys = [math.exp(line.bits(math.log(x))) for x in xs]
    series.append(plots.Series(f"frontier of {baseline}", xs, ys, "other"))
    image = plots.line_plot(
        "small-ladders", "Bits per byte over FLOPs", series, "FLOPs of training",
        log_x=tables.scientific,
    )  # fmt: skip
    names = [*(ladder.name for ladder in ladders), f"frontier of {baseline}"]
    legend = "".join(
        f'<text class="{style}" style="fill:currentColor" x="{plots.WIDTH - 118}" '
        f'y="{16 + 14 * row}">{name}</text>'
        for row, (name, style) in enumerate(zip(names, [*[*COLOURS][: len(ladders)], "other"],
                                                strict=True))
    )  # fmt: skip
    style = (
        "text{font:11px sans-serif;fill:#5f6670}.rule{stroke:#e3e0d8}.axis{stroke:#5f6670}"
        ".line{stroke:currentColor;fill:none}.dot{fill:currentColor}svg{background:#fff}"
        + "".join(f".{name}{{color:{colour}}}" for name, colour in COLOURS.items())
    )
    image = image.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, mark, body = image.partition("</desc>")
    return f"{head}{mark}<style>{style}</style>{body.removesuffix('</svg>')}{legend}</svg>\n"


def main() -> None:
    """Copies records, and prints the tables or writes them and the plot into docs/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, metavar="HOME", help="copy its records first")
    parser.add_argument("--write", action="store_true", help="into docs/")
    options = parser.parse_args()
    if options.keep is not None:
        keep(options.keep)
    ladders = there()
    if not options.write:
        print(made(ladders))
        return
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    page = f"{before}{BEGIN}\n\n{made(ladders)}\n\n{END}{rest.partition(END)[2]}"
    first = COMPARED[0]
    image = drawn([ladders[name] for name in (first[1], *first[2]) if name in ladders])
    for path, text in ((PAGE, page), (PLOT, image)):
        with paths.atomic_open(path) as file:
            file.write(text)


if __name__ == "__main__":
    main()
