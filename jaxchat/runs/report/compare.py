"""Two runs side by side: metrics, settings that differ, curves over each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.progress import duration
from jaxchat.runs.report import content, drawings
from jaxchat.runs.report.document import (
    NOTHING,
    Block,
    Rows,
    Sections,
    heading,
    legend,
    note,
    plots,
    table,
    to_markdown,
    to_page,
)
from jaxchat.runs.report.drawings import Drawn
from jaxchat.runs.report.reproduce import flat
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import dollars, metric, plain

Report = Mapping[str, Any]
SAME = "The settings of both runs are the same."
NOTE = (
    "A difference is beyond chance where its 95% interval, made of those of both values "
    "(Newcombe, 1998), leaves out 0. Both runs answer the same problems where seed and data are "
    "the same; the interval takes them as independent, and so is rather too wide than too narrow. "
    "One run of each says nothing of how much another seed would change."
)


def compare(a: Report, b: Report) -> dict[str, Any]:
    """What two reports have in common, and where they differ, as JSON.

    Under `metrics` is a row for each metric; under its `models` those that both runs have, each
    with the values `a` and `b`, `difference` (b - a) and, where both have intervals, `interval` of
    the difference and whether it is `beyond` chance. `settings` are those that differ: name, a, b.
    """
    names = a["run"]["name"], b["run"]["name"]
    if names[0] == names[1]:
        names = f"{names[0]} (first)", f"{names[1]} (second)"
    # prices are settings
    environments = [dict(content.environment_rows(report), price="") for report in (a, b)]
    return {
        "names": names,
        "metrics": _metrics(a, b),
        "settings": _different(flat(a["config"]), flat(b["config"])),
        "environment": _different(*environments),
        "figures": _figures(a, b),
    }


def _metrics(a: Report, b: Report) -> list[dict[str, Any]]:
    others = {row["name"]: row["values"] for row in b["metrics"]}
    rows = []
    for row in a["metrics"]:
        both = {m: (v, others.get(row["name"], {}).get(m)) for m, v in row["values"].items()}
        models = {model: difference(*pair) for model, pair in both.items() if pair[1] is not None}
        if models:
            rows.append({"name": row["name"], "unit": row["unit"], "models": models})
    return rows


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """b - a; with the 95% interval that those of a and b make, where both have one.

    Source: Newcombe (1998), the hybrid score interval, whose parts are Wilson's intervals.
    """
    change = b["value"] - a["value"]
    found = {"a": dict(a), "b": dict(b), "difference": change}
    if "interval" in a and "interval" in b:
        (a_low, a_high), (b_low, b_high) = a["interval"], b["interval"]
        low = change - math.hypot(b["value"] - b_low, a_high - a["value"])
        high = change + math.hypot(b_high - b["value"], a["value"] - a_low)
        found |= {"interval": [low, high], "beyond": low > 0 or high < 0}
    return found


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[list[Any]]:
    keys = dict.fromkeys([*a, *b])
    return [[key, a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)]


def _figures(a: Report, b: Report) -> list[list[str]]:
    """Size, time and cost of both."""
    rows = [["parameters", *(f"{r['parameters']['total']:,}" for r in (a, b))]]
    for name, stage in BY_NAME.items():
        made = [r["stages"].get(name) for r in (a, b)]
        if any(made):
            rows.append([stage.heading, *(duration(m["seconds"]) if m else "-" for m in made)])
    return [
        *rows,
        ["time in all", *(duration(r["seconds"]) for r in (a, b))],
        ["cost", *(dollars(r["dollars"]) for r in (a, b))],
    ]


def metric_rows(compared: Mapping[str, Any]) -> Rows:
    """The table of metrics of both runs."""
    rows: Rows = [("metric", "model", *compared["names"], "difference", "beyond chance")]
    for row in compared["metrics"]:
        unit = row["unit"]
        for model, pair in row["models"].items():
            interval = {"interval": pair["interval"]} if "interval" in pair else {}
            change = metric({"value": pair["difference"], **interval}, unit)
            sign = "+" if pair["difference"] > 0 else ""
            verdict = {True: "yes", False: "no", None: "not known"}[pair.get("beyond")]
            values = metric(pair["a"], unit), metric(pair["b"], unit)
            points = (sign + change).replace("%", " points")
            rows.append((row["name"], model, *values, points, verdict))
    return rows


def setting_rows(compared: Mapping[str, Any], part: str) -> Rows:
    """Settings, or what of the environment, that differ."""
    rows: Rows = [("setting" if part == "settings" else "", *compared["names"])]
    rows += [(name, _exact(a), _exact(b)) for name, a, b in compared[part]]
    return rows if len(rows) > 1 else []


def _exact(value: Any) -> str:
    """A setting with all its digits, so that two that differ look different."""
    return repr(value) if isinstance(value, float) else plain(value)


def _sections(compared: Mapping[str, Any], curves: Sequence[Block]) -> Sections:
    def shown(title: str, rows: Rows) -> list[Block]:
        return [table(title, rows)] if len(rows) > 1 else []

    names = compared["names"]
    metrics = shown("Metrics", metric_rows(compared))
    marks = plots([drawings.versus_figure("marks", compared["metrics"], names)], "plots wide")
    metrics += [note(NOTE), _keyed(names, marks.html)] if metrics else []
    settings = shown("Settings that differ", setting_rows(compared, "settings"))
    environment = shown("Environment that differs", setting_rows(compared, "environment"))
    figures: Rows = [("", *names), *(tuple(row) for row in compared["figures"])]
    return {
        "Metrics": metrics,
        "Training": curves,
        "Time and cost": shown("Time and cost", figures),
        "Settings that differ": settings or [note(SAME)],
        "Environment that differs": environment,
    }


def render_markdown(compared: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    first, second = compared["names"]
    return to_markdown(f"`{first}` and `{second}`", [], _sections(compared, []))


def render_page(a: Report, b: Report) -> str:
    """The comparison as a page, the curves of both runs over each other."""
    compared = compare(a, b)
    first, second = names = compared["names"]
    lead = [
        note(f"{name}: {content.headline(report)}", style="lead")
        for name, report in zip(names, (a, b), strict=True)
    ]
    parts = []
    for stage in MODELS:
        drawn = [
            Drawn(name, style, report["curves"][stage])
            for name, style, report in zip(names, ("a", "b"), (a, b), strict=True)
            if stage in report["curves"]
        ]
        title = BY_NAME[stage].heading
        figures = plots(drawings.stage_figures(stage, title, drawn)).html if drawn else ""
        parts += [heading(title).html, figures] if figures else []
    sections = _sections(compared, [_keyed(names, "".join(parts))])
    eyebrow = "jaxchat · two runs compared"
    return to_page(f"{first} and {second}", eyebrow, [*lead, _keyed(names, " ")], sections)


def _keyed(names: Sequence[str], drawn: str) -> Block:
    """Plots under the legend of both runs; on a page alone."""
    key = legend([(names[0], "a"), (names[1], "b")])
    return Block("", key + drawn.strip()) if drawn else NOTHING
