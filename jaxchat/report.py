"""The report of a run: `report.md` for people and `report.json` with the same figures (layer 4)."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat import home, machine
from jaxchat.config import RunConfig
from jaxchat.evals import compression
from jaxchat.infer.transcript import as_text, printable
from jaxchat.plan import size, table
from jaxchat.progress import duration
from jaxchat.recipe import to_json
from jaxchat.scaling import count_params

FORMAT = "jaxchat-report-1"
MODELS = ("base", "mid", "sft", "rl")
TITLES = {
    "data": "Text",
    "tokenizer": "Tokenizer",
    "rows": "Tokenized rows",
    "base": "Base model",
    "mid": "Midtraining",
    "sft": "Supervised fine-tuning",
    "rl": "Reinforcement learning",
    "eval": "Evaluation",
}
# The configuration that each stage's section shows; the rest is in report.json.
SETTINGS = {
    "data": ("data",),
    "tokenizer": ("tokenizer",),
    "rows": (),
    "base": ("model", "optim", "base"),
    "mid": ("mid",),
    "sft": ("sft",),
    "rl": ("rl",),
    "eval": ("eval",),
}
_TOLD_ELSEWHERE = {"artifact", "models", "sources", "splits", "compression"}


def write_report(
    config: RunConfig, root: Path, done: Mapping[str, Mapping[str, Any]]
) -> list[Path]:
    """Writes `report.md` and `report.json` into the run's folder `root`; returns their paths.

    `done` maps each complete stage to its record (see `pipeline`). The same records on the same
    machine give the same files, byte for byte.
    """
    report = make_report(config, done, machine.describe(), machine.git_state())
    paths = [root / "report.md", root / "report.json"]
    with home.atomic_open(paths[0]) as file:
        file.write(markdown(report))
    home.write_json(paths[1], report)
    return paths


def make_report(
    config: RunConfig,
    done: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, Any],
    git: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the report tells, as JSON."""
    settings = json.loads(to_json(config))
    evaluated: Mapping[str, Any] = done.get("eval", {}).get("results", {}).get("models", {})
    stages = {
        name: {
            "seconds": done[name]["seconds"],
            "settings": {part: settings[part] for part in SETTINGS[name]},
            "results": {k: v for k, v in done[name]["results"].items() if k not in _TOLD_ELSEWHERE},
        }
        for name in TITLES
        if name in done
    }
    data = done.get("data", {}).get("results", {})
    return {
        "format": FORMAT,
        "run": {key: settings[key] for key in ("name", "preset", "depth", "seed", "data_ratio")},
        "parameters": count_params(config.model),
        "environment": dict(environment),
        "git": dict(git),
        "metrics": metrics(evaluated),
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "data": {key: data[key] for key in ("sources", "splits") if key in data},
        "compression": done.get("tokenizer", {}).get("results", {}).get("compression", []),
        "stages": stages,
        "samples": {
            name: evaluated[name].get("samples", []) for name in MODELS if name in evaluated
        },
        "config": settings,
    }


def metrics(evaluated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of metrics: `name`, and under `values` a value for each model that has it.

    A value has `value`, and where it is a share `interval` (95%) and `total`.
    """
    rows = [_row("bits per byte", evaluated, lambda e: {"value": e["bits_per_byte"]})]
    names = dict.fromkeys(name for e in evaluated.values() for name in e["tasks"])
    rows += [
        _row(name, evaluated, lambda e, name=name: _share(e["tasks"].get(name))) for name in names
    ]
    rows.append(_row("mean reward", evaluated, lambda e: _share(e.get("reward"))))
    return [row for row in rows if row["values"]]


def _row(name: str, evaluated: Mapping[str, Any], read: Any) -> dict[str, Any]:
    found = {model: read(evaluated[model]) for model in MODELS if model in evaluated}
    return {"name": name, "values": {model: value for model, value in found.items() if value}}


def _share(score: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {"value": score["accuracy"], "interval": score["interval"], "total": score["total"]}


def metrics_cells(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of metrics as text, its head first: shared by the report and the terminal."""
    cells: list[tuple[str, ...]] = [("", *MODELS)]
    cells += [(row["name"], *(_cell(row["values"].get(model)) for model in MODELS)) for row in rows]
    return cells


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    if "interval" not in value:
        return f"{value['value']:.3f}"
    low, high = value["interval"]
    return f"{value['value']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    sections = [
        _head(report),
        _metrics_section(report),
        _samples_section(report),
        _stages_section(report),
        _data_section(report),
        _tokenizer_section(report),
        _settings_section(report),
        _environment_section(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    run, parameters = report["run"], report["parameters"]
    model = report["config"]["model"]
    return (
        f"# Report of the run `{run['name']}`\n\n"
        f"{parameters['total']:,} parameters ({run['preset']}, depth {run['depth']}, width "
        f"{model['n_embd']:,}, vocabulary {model['vocab_size']:,}, context "
        f"{model['sequence_len']:,}), seed {run['seed']}, {duration(report['seconds'])} in all."
    )


def _metrics_section(report: Mapping[str, Any]) -> str:
    totals = {
        v["total"] for row in report["metrics"] for v in row["values"].values() if "total" in v
    }
    counts = " or ".join(f"{total:,}" for total in sorted(totals))
    return "\n\n".join(
        [
            "## Metrics",
            _grid(metrics_cells(report["metrics"])),
            "Bits per byte are those of held-out text. Tasks: exact match on held-out problems, "
            "answered greedily with the tool. Mean reward: the same problems as in reinforcement "
            "learning, held out, sampled at temperature 1. Brackets hold the 95% interval"
            + (f" of {counts} answers." if counts else "."),
        ]
    )


def _samples_section(report: Mapping[str, Any]) -> str:
    parts = ["## Samples"] if report["samples"] else []
    for model in reversed(MODELS):
        if samples := report["samples"].get(model):
            parts += [f"### {model}", _fenced("\n\n".join(map(_sample, samples)))]
    return "\n\n".join(parts)


def _sample(sample: Mapping[str, Any]) -> str:
    if "prompt" in sample:
        return f"{sample['prompt']} |> {sample['completion']}"
    return f"user: {sample['question']}\njaxchat: {as_text(sample['parts'])}"


def _fenced(text: str) -> str:
    """A code block that its content, a model's words, cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def _stages_section(report: Mapping[str, Any]) -> str:
    stages = report["stages"]
    rows = [("stage", "time", "result")]
    rows += [
        (TITLES[name], duration(stage["seconds"]), _told(stage["results"]))
        for name, stage in stages.items()
    ]
    rows.append(("**total**", f"**{duration(report['seconds'])}**", ""))
    return "\n\n".join(
        [
            "## Stages",
            _grid(rows),
            "Bits per byte of a stage are those of the held-out rows of its own data. Loss is the "
            "mean of the last tenth of the steps.",
        ]
    )


def _told(results: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in results.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in plain.items())


def _settings_section(report: Mapping[str, Any]) -> str:
    lines = []
    for stage in report["stages"].values():
        for part, values in stage["settings"].items():
            text = f"[{part}] " + ", ".join(f"{k}={_shown(v)}" for k, v in values.items())
            lines.append(textwrap.fill(text, 96, subsequent_indent="    "))
    return "## Settings\n\n" + _fenced("\n\n".join(lines))


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) or "none"
    return str(value)


def _data_section(report: Mapping[str, Any]) -> str:
    tables = dict(report["data"])
    rows = report["stages"].get("rows", {}).get("results", {})
    tables["rows"] = {name.replace("_", " "): counts for name, counts in rows.items()}
    parts = [_counts(title, table) for title, table in tables.items() if table]
    return "\n\n".join(["## Data", *parts]) if parts else ""


def _tokenizer_section(report: Mapping[str, Any]) -> str:
    results = [compression.Result.from_json(value) for value in report["compression"]]
    if not results:
        return ""
    parts = [
        "## Tokenizer",
        _grid(compression.cells(results, lambda s: s.characters_per_token, "characters per token")),
        _grid(compression.cells(results, lambda s: s.bytes_per_token, "bytes per token")),
        "The texts are short originals that come with jaxchat: they compare tokenizers, and say "
        "little about a corpus.",
        *compression.notes(results),
    ]
    return "\n\n".join(parts)


def _counts(title: str, table: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of counts under their names."""
    keys = list(dict.fromkeys(key for counts in table.values() for key in counts))
    keys = [key for key in keys if key != "sha256"]
    rows = [(title, *(key.replace("_", " ") for key in keys))]
    rows += [
        (name, *(_shown(counts[key]) if key in counts else "-" for key in keys))
        for name, counts in table.items()
    ]
    return _grid(rows)


def _environment_section(report: Mapping[str, Any]) -> str:
    environment, git = report["environment"], report["git"]
    commit = "not a git checkout"
    if git["commit"]:
        commit = f"`{git['commit']}`" + (", with uncommitted changes" if git["dirty"] else "")
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    devices = environment["devices"]
    rows = [
        ("commit", commit),
        ("python", environment["python"]),
        ("platform", environment["platform"]),
        ("processor", f"{environment['processor']}, {environment['cores']} cores"),
        ("memory", size(environment["memory_bytes"])),
        ("devices", ", ".join(f"{devices.count(d)} x {d}" for d in dict.fromkeys(devices))),
        ("packages", packages),
    ]
    return "## Environment\n\n" + "\n".join(f"- {name}: {told}" for name, told in rows)


def _grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned in the source too; the first row is its head."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def read_report(root: Path) -> dict[str, Any]:
    """The report of the run in `root`. Raises ArtifactError when there is none."""
    path = root / "report.json"
    report: dict[str, Any] = home.read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise home.ArtifactError(
            f"{path} is no report of format {FORMAT}; make it again with --force report."
        )
    return report


def summary(report: Mapping[str, Any]) -> str:
    """The table of metrics for a terminal."""
    return "\n".join(table(metrics_cells(report["metrics"])))


def farewell(run: Path, options: str = "") -> str:
    """What a run says at its end: the metrics, where the report is, how to talk to the model."""
    command = Path(sys.executable).with_name("jaxchat")
    on_path = shutil.which("jaxchat") is not None
    chat = f"{'jaxchat' if on_path or not command.exists() else command} chat{options}"
    return "\n".join(
        [
            "",
            summary(read_report(run)),
            "",
            f"The report:   {run / 'report.md'}",
            f"Talk to it:   {chat}",
            f'One question: {chat} -p "Who are you?"',
        ]
    )
