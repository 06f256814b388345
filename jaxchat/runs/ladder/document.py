"""The report of a ladder, or of ladders compared: tables and plots, as Markdown and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.paths import atomic_open
from jaxchat.runs.ladder.frontier import Frontier
from jaxchat.runs.ladder.results import Ladder, Record, frontier_of, steps_seconds, to_json
from jaxchat.runs.ladder.tables import (
    conclusion,
    measured_on,
    method,
    multiplier_rows,
    notes_of,
    rung_rows,
    scientific,
)
from jaxchat.runs.report import plots
from jaxchat.runs.report.document import (
    NOTHING,
    Block,
    Rows,
    Sections,
    figure,
    legend,
    note,
    table,
    to_markdown,
    to_page,
)
from jaxchat.runs.report.document import plots as side_by_side
from jaxchat.runs.report.plots import Series
from jaxchat.runs.tables import plain

STYLES = ("a", "b", "mid", "rl", "sft", "base")  # of ladders, the baseline first
POINTS = 40  # of a frontier that is drawn
Shown = Mapping[str, Any]


def _plots(ladders: Sequence[Ladder], line: Frontier | None) -> Block:
    """Bits per byte over FLOPs, with the first ladder's frontier, and over time."""
    flops, seconds = list[Series](), list[Series]()
    for ladder, style in zip(ladders, STYLES, strict=False):
        for runs in _by_seed(ladder):
            name, bits = f"seed {runs[0]['seed']} of {ladder.name}", _column(runs, "bits_per_byte")
            flops.append(Series(name, _column(runs, "flops"), bits, style, "dots"))
            seconds.append(Series(name, [steps_seconds(run) for run in runs], bits, style, "dots"))
    if line is not None:
        xs = np.linspace(line.low, line.high, POINTS).tolist()
        ys = [math.exp(line.bits(x)) for x in xs]
        name = f"frontier of {ladders[0].name}"
        flops.append(Series(name, [math.exp(x) for x in xs], ys, "other"))
    drawn = [
        plots.line_plot("over-flops", "Bits per byte over FLOPs", flops, "FLOPs of training",
                        log_x=scientific),
        plots.line_plot("over-time", "Bits per byte over time", seconds, "seconds of steps",
                        log_x=scientific),
    ]  # fmt: skip
    shown = side_by_side(
        figure("Bits per byte", drawing, f"over {over}, a dot a run")
        for drawing, over in zip(drawn, ("FLOPs", "time"), strict=True)
    )
    if not shown.html:
        return NOTHING
    entries = [(ladder.name, style) for ladder, style in zip(ladders, STYLES, strict=False)]
    entries += [] if line is None else [(f"frontier of {ladders[0].name}", "other")]
    return Block("", legend(entries) + shown.html)


def _by_seed(ladder: Ladder) -> list[list[Record]]:
    every = [[run for run in ladder.runs if run["seed"] == s] for s in ladder.record["seeds"]]
    return [runs for runs in every if runs]


def _column(runs: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(run[key]) for run in runs]


def named(shown: Shown) -> Rows:
    """The table of a ladder's rungs, under its name."""
    (_, *head), *body = rung_rows(shown)
    return [(f"depth of {shown['name']}", *head), *body]


def _recipe_rows(records: Sequence[Shown]) -> Rows:
    """The settings in which recipes differ; of one alone, what was asked for."""
    if len(records) == 1:
        (only,) = records
        asked = [(key, plain(only[key])) for key in ("tier", "overrides", "depths", "seeds")]
        return [("of the recipe", "is"), *asked, ("commit", str(only["made"]["commit"]))]
    names = [record["name"] for record in records]
    every = dict.fromkeys(key for record in records for key in record["settings"])
    rows: Rows = [("setting", *names)]
    for key in every:
        values = [record["settings"].get(key) for record in records]
        if key != "run.name" and any(value != values[0] for value in values):
            rows.append((key, *map(_exact, values)))
    return rows


def _exact(value: Any) -> str:
    return repr(value) if isinstance(value, float) else plain(value)


def _write(
    folder: Path, stem: str, names: Sequence[str], said: Sequence[str], parts: Sections
) -> list[Path]:
    """Writes a document of the ladders of some names, and what it begins with."""
    page, text = " and ".join(names), " and ".join(f"`{name}`" for name in names)
    eyebrow = "jaxchat · a ladder" if len(names) == 1 else "jaxchat · ladders compared"
    lead = [note(line, style="lead") for line in said]
    texts = {
        folder / f"{stem}.html": to_page(page, eyebrow, lead, parts),
        folder / f"{stem}.md": to_markdown(text, lead, parts),
    }
    for path, content in texts.items():
        with atomic_open(path) as file:
            file.write(content)
    return list(texts)


def write_ladder(ladder: Ladder) -> list[Path]:
    """Writes report.html and report.md into the folder of a ladder; their paths."""
    shown = to_json(ladder)
    rungs = [table("Rungs", rung_rows(shown)), note(measured_on(shown))] if ladder.runs else []
    parts: Sections = {
        "Rungs": [*rungs, _plots([ladder], None)],
        "Recipe": [table("Recipe", _recipe_rows([ladder.record]))],
    }
    return _write(ladder.place, "report", [ladder.name], notes_of(shown), parts)


def write_comparison(ladders: Sequence[Ladder], compared: Shown, folder: Path) -> list[Path]:
    """Writes the report of `results.compare` of ladders into `folder`; its paths."""
    every = [compared["baseline"], *compared["variants"]]
    said = [conclusion(ladders[0].name, variant) for variant in compared["variants"]]
    remarks = [line for shown in every for line in notes_of(shown)]
    rungs = [table(f"Rungs of {shown['name']}", named(shown)) for shown in every]
    parts: Sections = {
        "Multipliers": [
            table("Multipliers", multiplier_rows(compared)), note(method(compared)),
            _plots(ladders, frontier_of(ladders[0], compared["degree"])),
        ],
        "Rungs": [*rungs, note(measured_on(every[0]))],
        "Settings that differ, of the first rung": [
            table("Settings", _recipe_rows([ladder.record for ladder in ladders]))
        ],
    }  # fmt: skip
    names = [ladder.name for ladder in ladders]
    return _write(folder, "compare_" + "_".join(names), names, [*said, *remarks], parts)
