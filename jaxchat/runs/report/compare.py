"""Two runs side by side: metrics, settings that differ, curves over each other (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.progress import duration
from jaxchat.runs.report import drawings, markdown, text
from jaxchat.runs.report.drawings import Drawn
from jaxchat.runs.report.elements import document, legend, paragraph, plots, section, table, words
from jaxchat.runs.report.metrics import told
from jaxchat.runs.report.reproduce import flat
from jaxchat.runs.stages import BY_NAME

Report = Mapping[str, Any]
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
    return {
        "names": names_of(a, b),
        "metrics": [row for row in map(_with(b["metrics"]), a["metrics"]) if row["models"]],
        "settings": _different(flat(a["config"]), flat(b["config"])),
        "environment": _different(_environment(a), _environment(b)),
        "figures": _figures(a, b),
    }


def names_of(a: Report, b: Report) -> tuple[str, str]:
    """The names of the runs, told apart where they are the same."""
    names = a["run"]["name"], b["run"]["name"]
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")


def _with(others: Sequence[Mapping[str, Any]]) -> Any:
    by_name = {row["name"]: row for row in others}

    def joined(row: Mapping[str, Any]) -> dict[str, Any]:
        values = by_name.get(row["name"], {}).get("values", {})
        models = {
            model: difference(value, values[model])
            for model, value in row["values"].items()
            if model in values
        }
        return {"name": row["name"], "unit": row["unit"], "models": models}

    return joined


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


def _environment(report: Report) -> dict[str, str]:
    return {name: value for name, value in text.environment_rows(report) if name != "price"}


def _figures(a: Report, b: Report) -> list[list[str]]:
    """Size, time and cost of both."""
    return [
        ["parameters", *(f"{r['parameters']['total']:,}" for r in (a, b))],
        *(
            [BY_NAME[name].heading, *(_time(r["stages"].get(name)) for r in (a, b))]
            for name in BY_NAME
            if name in a["stages"] or name in b["stages"]
        ),
        ["time in all", *(duration(r["seconds"]) for r in (a, b))],
        ["cost", *(text.dollars(r["dollars"]) for r in (a, b))],
    ]


def _time(stage: Mapping[str, Any] | None) -> str:
    return duration(stage["seconds"]) if stage else "-"


def metric_rows(compared: Mapping[str, Any]) -> text.Rows:
    """The table of metrics of both runs."""
    first, second = compared["names"]
    rows: text.Rows = [("metric", "model", first, second, "difference", "beyond chance")]
    for row in compared["metrics"]:
        for model, pair in row["models"].items():
            unit = row["unit"]
            shown = told({"value": pair["difference"], **_interval(pair)}, unit)
            sign = "+" if pair["difference"] > 0 else ""
            verdict = {True: "yes", False: "no", None: "not known"}[pair.get("beyond")]
            rows.append(
                (row["name"], model, told(pair["a"], unit), told(pair["b"], unit),
                 (sign + shown).replace("%", " points"), verdict)
            )  # fmt: skip
    return rows


def _interval(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {"interval": pair["interval"]} if "interval" in pair else {}


def setting_rows(compared: Mapping[str, Any], part: str) -> text.Rows:
    """Settings, or what of the environment, that differ."""
    rows: text.Rows = [("setting" if part == "settings" else "", *compared["names"])]
    rows += [(name, _exact(a), _exact(b)) for name, a, b in compared[part]]
    return rows if len(rows) > 1 else []


def _exact(value: Any) -> str:
    """A setting with all its digits: two that differ are told differently."""
    return repr(value) if isinstance(value, float) else text.shown(value)


def figure_rows(compared: Mapping[str, Any]) -> text.Rows:
    """Size, time and cost."""
    return [("", *compared["names"]), *(tuple(row) for row in compared["figures"])]


def render_markdown(compared: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    first, second = compared["names"]
    parts = [f"# `{first}` and `{second}`"]
    for title, rows in _tables(compared):
        parts += [f"## {title}", markdown.grid(rows)]
        parts += [NOTE] if title == "Metrics" else []
    if not compared["settings"]:
        parts.append("The settings are the same.")
    return "\n\n".join(parts) + "\n"


def _tables(compared: Mapping[str, Any]) -> list[tuple[str, text.Rows]]:
    tables = [
        ("Metrics", metric_rows(compared)),
        ("Time and cost", figure_rows(compared)),
        ("Settings that differ", setting_rows(compared, "settings")),
        ("Environment that differs", setting_rows(compared, "environment")),
    ]
    return [(title, rows) for title, rows in tables if len(rows) > 1]


def render_page(a: Report, b: Report) -> str:
    """The comparison as a page, the curves of both runs over each other."""
    compared = compare(a, b)
    names = compared["names"]
    tables = dict(_tables(compared))
    key = legend([(names[0], "a"), (names[1], "b")])
    lead = [
        paragraph(f"{name}: {text.headline(report)}", "lead")
        for name, report in zip(names, (a, b), strict=True)
    ]
    same = paragraph("The settings of both runs are the same.")
    marks = plots([drawings.versus_figure("marks", compared["metrics"], names)], "plots wide")
    sections = [
        section("Metrics", _table("Metrics", tables), paragraph(NOTE), marks and key + marks)
        if "Metrics" in tables
        else "",
        _curves(a, b, names, key),
        section("Time and cost", _table("Time and cost", tables)),
        section("Settings that differ", _table("Settings that differ", tables) or same),
        section("Environment that differs", _table("Environment that differs", tables)),
    ]
    title = f"{names[0]} and {names[1]}"
    return document(title, "jaxchat · two runs compared", [*lead, key], sections)


def _table(title: str, tables: Mapping[str, text.Rows]) -> str:
    return table(title, tables[title]) if title in tables else ""


def _curves(a: Report, b: Report, names: Sequence[str], key: str) -> str:
    parts = []
    for stage in MODELS:
        drawn = [
            Drawn(name, style, report["curves"][stage])
            for name, style, report in zip(names, ("a", "b"), (a, b), strict=True)
            if stage in report["curves"]
        ]
        if drawn and (
            figures := plots(drawings.stage_figures(stage, BY_NAME[stage].heading, drawn))
        ):
            parts += [f"<h3>{words(BY_NAME[stage].heading)}</h3>", figures]
    return section("Training", key if parts else "", *parts)
