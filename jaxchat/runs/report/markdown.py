"""The report as Markdown (layer 4)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.evals import compression
from jaxchat.inference.transcript import as_text
from jaxchat.runs.report import text
from jaxchat.runs.report.metrics import metrics_cells


def render(report: Mapping[str, Any]) -> str:
    """The report for people."""
    sections = [
        f"# Report of the run `{report['run']['name']}`\n\n{text.headline(report)}",
        _missing_section(report),
        _metrics_section(report),
        _core_section(report),
        _samples_section(report),
        _tools_section(report),
        _stages_section(report),
        _data_section(report),
        _tokenizer_section(report),
        _reproduce_section(report),
        _settings_section(report),
        _environment_section(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _missing_section(report: Mapping[str, Any]) -> str:
    notes = text.missing_notes(report)
    return "\n".join(["## Not complete", "", *(f"- {note}" for note in notes)]) if notes else ""


def _metrics_section(report: Mapping[str, Any]) -> str:
    if not report["metrics"]:
        return ""
    return "\n\n".join(
        [
            "## Metrics",
            grid(metrics_cells(report["metrics"])),
            text.metrics_note(report),
            *([report["core_missing"]] if report["core_missing"] else []),
        ]
    )


def _core_section(report: Mapping[str, Any]) -> str:
    parts = ["## CORE by task"] if report["core"] else []
    for model, tasks in report["core"].items():
        parts += [f"### {text.core_title(report, model)}", grid(text.core_rows(tasks))]
    return "\n\n".join(parts)


def _samples_section(report: Mapping[str, Any]) -> str:
    parts = ["## Samples"] if any(report["samples"].values()) else []
    for model in reversed(MODELS):
        if samples := report["samples"].get(model):
            parts += [f"### {model}", fenced("\n\n".join(map(_sample, samples)))]
    return "\n\n".join(parts)


def _sample(sample: Mapping[str, Any]) -> str:
    if "prompt" in sample:
        return f"{sample['prompt']} |> {sample['completion']}"
    return f"user: {sample['question']}\njaxchat: {as_text(sample['parts'])}"


def fenced(words: str, language: str = "text") -> str:
    """A code block that its content, a model's words, cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.clean(words)}\n{fence}"


def _tools_section(report: Mapping[str, Any]) -> str:
    rows = text.tool_rows(report)
    return "\n\n".join(["## Tool use", grid(rows), text.TOOLS_NOTE]) if rows else ""


def _stages_section(report: Mapping[str, Any]) -> str:
    *rows, total = text.stage_rows(report)
    rows.append(tuple(f"**{cell}**" if cell else "" for cell in total))
    return "\n\n".join(["## Stages", grid(rows), text.stages_note(report)])


def _data_section(report: Mapping[str, Any]) -> str:
    tables = text.data_tables(report)
    return "\n\n".join(["## Data", *map(grid, tables)]) if tables else ""


def _tokenizer_section(report: Mapping[str, Any]) -> str:
    results = [compression.Result.from_json(value) for value in report["compression"]]
    if not results:
        return ""
    parts = [
        "## Tokenizer",
        grid(compression.cells(results, lambda s: s.characters_per_token, "characters per token")),
        grid(compression.cells(results, lambda s: s.bytes_per_token, "bytes per token")),
        text.TOKENIZER_NOTE,
        *compression.notes(results),
    ]
    return "\n\n".join(parts)


def _reproduce_section(report: Mapping[str, Any]) -> str:
    commands = text.commands(report)
    told = fenced(commands, "bash") if commands else text.NO_COMMAND
    return f"## To make it again\n\n{told}"


def _settings_section(report: Mapping[str, Any]) -> str:
    lines = []
    for stage in report["stages"].values():
        for part, values in stage["settings"].items():
            told = f"[{part}] " + ", ".join(f"{k}={text.shown(v)}" for k, v in values.items())
            lines.append(textwrap.fill(told, 96, subsequent_indent="    "))
    return "## Settings\n\n" + fenced("\n\n".join(lines)) if lines else ""


def _environment_section(report: Mapping[str, Any]) -> str:
    rows = text.environment_rows(report)
    return "## Environment\n\n" + "\n".join(f"- {name}: {told}" for name, told in rows)


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned in the source too; the first row is its head."""
    cells = [[_in_cell(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _in_cell(cell: str) -> str:
    return text.clean(cell).replace("\n", " ").replace("|", "\\|")
