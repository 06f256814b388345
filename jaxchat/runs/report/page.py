"""The report as one page of HTML (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.evals import compression
from jaxchat.progress import duration
from jaxchat.runs.report import drawings, text
from jaxchat.runs.report.drawings import Drawn
from jaxchat.runs.report.elements import (
    code,
    document,
    facts,
    paragraph,
    plots,
    section,
    table,
    words,
)
from jaxchat.runs.report.metrics import metrics_cells, told
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import count


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    lead = [paragraph(text.headline(report), "lead"), _figures(report), _missing(report)]
    sections = [
        _metrics(report),
        _core(report),
        _training(report),
        _samples(report),
        _stages(report),
        _data(report),
        _tokenizer(report),
        _reproduce(report),
        _settings(report),
        section("Environment", facts(text.environment_rows(report))),
    ]
    return document(report["run"]["name"], "jaxchat · report of a run", lead, sections)


def _figures(report: Mapping[str, Any]) -> str:
    """The few numbers that one looks for first."""
    steps = [stage["results"].get("tokens", 0) for stage in report["stages"].values()]
    rows = [
        ("parameters", count(report["parameters"]["total"])),
        ("tokens trained", count(sum(steps))),
    ]
    rows.append(("time", duration(report["seconds"])))
    if report["dollars"]:
        rows.append(("cost", text.dollars(report["dollars"])))
    by_name = {row["name"]: row for row in report["metrics"]}
    for name in [n for n in ("CORE", "bits per byte", "ChatCORE") if n in by_name][:2]:
        row = by_name[name]
        model, value = list(row["values"].items())[-1 if name == "ChatCORE" else 0]
        rows.append((f"{name} of {model}", told({"value": value["value"]}, row["unit"])))
    return facts(rows, "figures")


def _missing(report: Mapping[str, Any]) -> str:
    notes = "".join(f"<li>{words(note)}</li>" for note in text.missing_notes(report))
    return f'<div class="missing"><p>Not complete:</p><ul>{notes}</ul></div>' if notes else ""


def _metrics(report: Mapping[str, Any]) -> str:
    if not report["metrics"]:
        return ""
    return section(
        "Metrics",
        table("Metrics by model", metrics_cells(report["metrics"])),
        paragraph(text.metrics_note(report)),
        paragraph(report["core_missing"].replace("`", "")) if report["core_missing"] else "",
        plots([drawings.share_figure("shares", report["metrics"])], "plots wide"),
    )


def _core(report: Mapping[str, Any]) -> str:
    parts = []
    for model, tasks in report["core"].items():
        if not tasks:
            continue
        parts += [
            f"<h3>{words(text.core_title(report, model))}</h3>",
            '<div class="pair">',
            drawings.core_figure(f"core-{model}", model, tasks),
            table(f"CORE by task of {model}", text.core_rows(tasks)),
            "</div>",
        ]
    return section("CORE by task", *parts)


def _training(report: Mapping[str, Any]) -> str:
    parts = []
    for stage, curve in report["curves"].items():
        figures = plots(
            drawings.stage_figures(stage, BY_NAME[stage].heading, [Drawn(stage, stage, curve)])
        )
        if figures:
            parts += [f"<h3>{words(BY_NAME[stage].heading)}</h3>", figures]
    note = (
        "Faint: what was logged, thinned where there is much of it; strong: its moving mean. The "
        "start of a loss, before a twentieth of the training, may lie above the frame."
    )
    return section("Training", *parts, paragraph(note) if parts else "")


def _samples(report: Mapping[str, Any]) -> str:
    parts: list[str] = []
    for model in reversed(MODELS):
        if samples := report["samples"].get(model):
            shown = "".join(map(_sample, samples))
            opened = "" if parts else " open"
            parts.append(f"<details{opened}><summary>{words(model)}</summary>{shown}</details>")
    rows = text.tool_rows(report)
    tools = (
        ["<h3>Tool use</h3>", table("Tool use", rows), paragraph(text.TOOLS_NOTE)] if rows else []
    )
    return section("Samples", *parts, *tools)


def _sample(sample: Mapping[str, Any]) -> str:
    if "prompt" in sample:
        return (
            f'<p class="completion"><b>{words(sample["prompt"])}</b>'
            f"{words(sample['completion'])}</p>"
        )
    parts = "".join(map(_part, sample["parts"], [*sample["parts"][1:], None]))
    return (
        f'<div class="talk"><p class="asked"><span class="hidden">asked: </span>'
        f'{words(sample["question"])}</p><div class="said"><span class="hidden">answered: </span>'
        f"{parts}</div></div>"
    )


def _part(part: Mapping[str, str], after: Mapping[str, str] | None) -> str:
    """Text as it stands; a call and its result, after which a line ends, set apart."""
    said = words(part["text"])
    if part["type"] == "text":
        return f"<span>{said}</span>"
    failed = part["type"] == "python_output" and part["text"].startswith("error")
    kind = {"python": "call", "python_output": "result"}.get(part["type"], "call")
    ends = "<br>" if after and after["type"] != "python_output" else ""
    return f'<code class="{kind}{" failed" if failed else ""}">{said or "…"}</code>{ends}'


def _stages(report: Mapping[str, Any]) -> str:
    if not report["stages"]:
        return ""
    return section(
        "Stages",
        plots([drawings.time_figure("time", report["stages"])], "plots wide"),
        table("Time and results by stage", text.stage_rows(report), total=True),
        paragraph(text.stages_note(report)),
    )


def _data(report: Mapping[str, Any]) -> str:
    return section("Data", *(table(rows[0][0], rows) for rows in text.data_tables(report)))


def _tokenizer(report: Mapping[str, Any]) -> str:
    results = [compression.Result.from_json(value) for value in report["compression"]]
    if not results:
        return ""
    characters = compression.cells(results, lambda s: s.characters_per_token, "characters a token")
    sizes = compression.cells(results, lambda s: s.bytes_per_token, "bytes a token")
    return section(
        "Tokenizer",
        '<div class="pair">',
        table("Characters per token", characters),
        table("Bytes per token", sizes),
        "</div>",
        paragraph(" ".join([text.TOKENIZER_NOTE, *compression.notes(results)])),
    )


def _reproduce(report: Mapping[str, Any]) -> str:
    commands = text.commands(report)
    return section("To make it again", code(commands) if commands else paragraph(text.NO_COMMAND))


def _settings(report: Mapping[str, Any]) -> str:
    parts = []
    for stage in report["stages"].values():
        for part, values in stage["settings"].items():
            rows = [(key, text.shown(value)) for key, value in values.items()]
            parts.append(f"<details><summary>{words(part)}</summary>{facts(rows)}</details>")
    return section("Settings", *parts)
