"""The files of a report, written at the end of a run or of what there is of it (layer 4).

RUN/report.md     for people, in any editor
RUN/report.html   for people, with plots; one file, nothing else is loaded
RUN/report.json   the same figures, and the curves
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat import home, machine, pipeline, recipe, runs
from jaxchat.config import RunConfig
from jaxchat.evals.parts import PARTS, Parts, with_more
from jaxchat.home import ArtifactError
from jaxchat.plan import table
from jaxchat.report import markdown, page
from jaxchat.report.curves import STAGES, read_curves
from jaxchat.report.gather import FORMAT, TITLES, Done, make_report
from jaxchat.report.metrics import MODELS, core_record, metrics_cells

FILES = ("report.md", "report.html", "report.json")


def write_report(config: RunConfig, root: Path, done: Done, *, sandbox: str = "") -> list[Path]:
    """Writes the report into the run's folder `root`; returns the paths of FILES.

    `done` maps each complete stage to its record (see `pipeline`); `sandbox` says what confined the
    code that models wrote. The same records on the same machine give the same files, byte for byte.
    """
    environment, git = machine.describe(), machine.git_state()
    curves = read_curves(root, config, [name for name in STAGES if name in done])
    done = _with_more(root, done)
    return _write(root, make_report(config, done, environment, git, curves=curves, sandbox=sandbox))


def write_run(root: Path) -> dict[str, Any]:
    """Writes the report of whatever stages the run in `root` has; returns it."""
    report = gather_run(root)
    _write(root, report)
    return report


def _write(root: Path, report: Mapping[str, Any]) -> list[Path]:
    paths = [root / name for name in FILES]
    texts = (markdown.render(report), page.render(report), json.dumps(report, indent=1) + "\n")
    for path, text in zip(paths, texts, strict=True):
        with home.atomic_open(path) as file:
            file.write(text)
    return paths


def gather_run(root: Path) -> dict[str, Any]:
    """The report of the run in `root` as it stands, complete or not; nothing is written.

    What a stage made with other settings than the run now has is left out, as a run would make it
    again. The machine and the commit are those of the report the run itself wrote, if it did.
    Raises ArtifactError when there is no run.
    """
    config = runs.read_config(root)
    done, states = _read_stages(root, config)
    if "eval" not in done and (models := _evaluated_so_far(root, done)):
        states["eval"] = f"under way: {', '.join(models)} evaluated"
        done["eval"] = {"seconds": 0.0, "results": {"models": models}}
    done = _with_more(root, done)
    logged = [name for name in STAGES if name in done or states.get(name) != _STALE]
    curves = read_curves(root, config, logged)
    for name, curve in curves.items():
        if name not in done:
            total = getattr(config, name).steps
            of = f" of {total:,}" if total else ""
            states[name] = f"under way: {curve['steps']:,}{of} steps"
    written = _written(root)
    return make_report(
        config,
        done,
        written.get("environment", {}),
        written.get("git") or machine.git_state(),
        curves=curves,
        sandbox=written.get("sandbox", ""),
        states=states,
    )


def _with_more(root: Path, done: Done) -> dict[str, dict[str, Any]]:
    """The records, with what `jaxchat eval core` and `eval chat` found of the present weights."""
    known = {name: dict(record) for name, record in done.items()}
    if "eval" in known:
        results = dict(known["eval"]["results"])
        models = {name: dict(record) for name, record in results.get("models", {}).items()}
        known["eval"]["results"] = results | {"models": models}
        weights = _weights(known)
        _add_core(root, models, weights)
        _add_chat(root, models, weights)
    return known


def _add_core(root: Path, models: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """Puts in CORE where the evaluation did not measure it, or on fewer examples."""
    for name, record in models.items():
        path = root / "eval" / f"core-{name}" / "result.json"
        told = home.read_json(path) if path.exists() else {}
        if told.get("weights") == weights.get(name, "") and told.get("context") is None:
            found = core_record(told)
            if _examples(found) > _examples(record.get("core", {})):
                record["core"] = found


def _examples(core: Mapping[str, Any]) -> int:
    return sum(int(task["problems"]) for task in core.get("tasks", {}).values())


def _add_chat(root: Path, models: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    """Puts in what was found on more problems."""
    for name, record in models.items():
        for path in sorted((root / "eval").glob(f"chat-{name}-*.json")):
            told = home.read_json(path)
            if told.get("weights") == weights.get(name, "") and told.get("greedy"):
                record |= with_more(record, told["task"], told["result"])


_STALE = "made with other settings, to be made again"


def _tables(config: RunConfig) -> list[dict[str, Any]]:
    """The tables of a run's settings, and those that stages make of them."""
    tables = json.loads(recipe.to_json(config)).values()
    made = [dataclasses.asdict(config.optim_of(stage)) for stage in MODELS]
    return [table for table in (*tables, *made) if isinstance(table, dict)]


def _read_stages(root: Path, config: RunConfig) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The records of the stages that are complete with these settings; what is wrong with others.

    What was made from a stale artefact is stale as well.
    """
    tables = _tables(config)
    done, states = dict[str, dict[str, Any]](), dict[str, str]()
    for name in (name for name in TITLES if not config.leaves_out(name)):
        record = pipeline.read_done(root, name)
        if record is None:
            continue
        if states or not _has_settings(record.get("settings", []), tables):
            states[name] = _STALE
        else:
            done[name] = record
    return done, states


def _has_settings(recorded: list[Any], tables: list[dict[str, Any]]) -> bool:
    """Whether each table that a stage recorded is one of the run's, or was before it grew."""
    return all(
        any(part.items() <= _hashable(table).items() for table in tables)
        for part in map(_hashable, (table for table in recorded if isinstance(table, dict)))
    )


def _hashable(table: Mapping[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value, sort_keys=True) for key, value in table.items()}


def _evaluated_so_far(root: Path, done: Done) -> dict[str, Any]:
    """What an evaluation that is not complete has of each model."""
    folder = root / "eval"
    if (folder / "done.json").exists():
        return {}  # complete, but with other settings
    if (folder / PARTS).exists():
        return Parts(folder / PARTS, _weights(done)).records()
    paths = {name: folder / f"{name}.json" for name in MODELS}  # of runs before there were parts
    return {name: home.read_json(path) for name, path in paths.items() if path.exists()}


def _weights(done: Done) -> dict[str, str]:
    """The hash of each model's weights."""
    return {name: str(done[name]["results"]["artifact"]) for name in MODELS if name in done}


def _written(root: Path) -> dict[str, Any]:
    """The report that there is, of whatever format; empty when there is none."""
    try:
        report = home.read_json(root / "report.json")
    except ArtifactError:
        return {}
    return report if isinstance(report, dict) else {}


def read_report(root: Path) -> dict[str, Any]:
    """The report of the run in `root`. Raises ArtifactError when there is none."""
    return read_file(root / "report.json")


def read_file(path: Path) -> dict[str, Any]:
    """A report.json. Raises ArtifactError for anything else."""
    report: dict[str, Any] = home.read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is no report of format {FORMAT}; make it again from its run with "
            "jaxchat report."
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
    report = read_report(run)
    return "\n".join(
        [
            "",
            summary(report),
            "",
            f"The report:   {run / 'report.html'} (and report.md)",
            f"Talk to it:   {chat}",
            f'One question: {chat} -p "Who are you?"',
            *_which_model(report),
        ]
    )


def _which_model(report: Mapping[str, Any]) -> list[str]:
    """Whom one talks to, and how to talk to another."""
    best, *others = [name for name in reversed(MODELS[1:]) if name in report["stages"]] or [""]
    other = f"; --stage {' or '.join(others)} talks to another" if others else ""
    return [f"This is the model of {best}{other}."] if best else []
