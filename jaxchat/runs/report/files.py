"""The files of a report, written at the end of a run or of what there is of it.

RUN/report.md     for people, in any editor
RUN/report.html   for people, with plots; one file, nothing else is loaded
RUN/report.json   the same figures, and the curves
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.saved import PARTS, Parts
from jaxchat.paths import atomic_open, read_json
from jaxchat.runs import provenance, run_dir, runner
from jaxchat.runs.report import by_hand, content
from jaxchat.runs.report.curves import read_curves
from jaxchat.runs.report.gather import FORMAT, NOT_RUN, REPORTED, Done, make_report
from jaxchat.runs.report.metrics import metrics_cells
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import table
from jaxchat.tools.sandbox import levels

FILES = ("report.md", "report.html", "report.json")


def run_report(context: runner.Context) -> dict[str, Any]:
    """The stage `report`: writes report.md, report.html and report.json."""
    sandbox = levels.detect().name if "humaneval" in context.config.eval.tasks else ""
    write_report(context.config, context.root, context.done, sandbox=sandbox)
    return {"artifact": "report", "files": list(FILES)}


def write_report(config: RunConfig, root: Path, done: Done, *, sandbox: str = "") -> list[Path]:
    """Writes the report into the run's folder `root`; returns the paths of FILES.

    `done` maps each complete stage to its record (see `runner`); `sandbox` says what confined the
    code that models wrote. The same records on the same machine give the same files, byte for byte.
    """
    environment, git = provenance.describe(), provenance.git_state()
    curves = read_curves(root, config, [name for name in MODELS if name in done])
    done = _with_more(root, config, done)
    return _write(root, make_report(config, done, environment, git, curves=curves, sandbox=sandbox))


def write_run(root: Path) -> dict[str, Any]:
    """Writes the report of whatever stages the run in `root` has; returns it."""
    report = gather_run(root)
    _write(root, report)
    return report


def _write(root: Path, report: Mapping[str, Any]) -> list[Path]:
    paths = [root / name for name in FILES]
    texts = (content.markdown(report), content.page(report), json.dumps(report, indent=1) + "\n")
    for path, text in zip(paths, texts, strict=True):
        with atomic_open(path) as file:
            file.write(text)
    return paths


def gather_run(root: Path) -> dict[str, Any]:
    """The report of the run in `root` as it stands, complete or not; nothing is written.

    What a stage made with other settings than the run now has is left out, as a run would make it
    again. The machine and the commit are those of the report the run itself wrote, if it did.
    Raises ArtifactError when there is no run.
    """
    config = run_dir.read_config(root)
    context = runner.Context(config, root)
    there = [stage for stage in REPORTED if not config.leaves_out(stage.name)]
    states = {n: _stale(why) for n, why in runner.read_current(there, context).items()}
    done, complete = context.done, "eval" in context.done
    if not complete and (models := _evaluated_so_far(context)):
        states["eval"] = f"under way: {', '.join(models)} evaluated"
        done = done | {"eval": {"seconds": 0.0, "results": {"models": models}}}
    done = _with_more(root, config, done)
    if "eval" in done and not complete:
        states.setdefault("eval", NOT_RUN)  # but jaxchat eval was
    curves = read_curves(root, config, [name for name in MODELS if name not in states])
    for name, curve in curves.items():
        if name not in done:
            total = getattr(config, name).steps
            of = f" of {total:,}" if total else ""
            states[name] = f"under way: {curve['steps']:,}{of} steps"
    try:
        written = read_json(root / FILES[2])  # of whatever format
    except ArtifactError:
        written = {}
    written = written if isinstance(written, dict) else {}
    return make_report(
        config,
        done,
        written.get("environment", {}),
        written.get("git") or provenance.git_state(),
        curves=curves,
        sandbox=written.get("sandbox", ""),
        states=states,
    )


def _with_more(root: Path, config: RunConfig, done: Done) -> dict[str, dict[str, Any]]:
    """The records, with what `jaxchat eval core` and `eval chat` found of the present weights.

    Where there is no evaluation, that makes its record.
    """
    known = {name: dict(record) for name, record in done.items()}
    evaluation = known.get("eval", {"seconds": 0.0, "results": {}})
    models = dict(evaluation["results"].get("models", {}))
    by_hand.add_kept(root, config, models, _weights(known))
    if models:
        known["eval"] = evaluation | {"results": evaluation["results"] | {"models": models}}
    return known


def _stale(why: str) -> str:
    """Why a stage that has a record is not complete: what `runner.read_current` found."""
    made = {
        runner.SETTINGS: "with other settings",
        runner.CHANGED: "from what was made again since",
    }.get(why) or f"from an earlier result of {BY_NAME[why].title}"
    return f"made {made}, to be made again"


def _evaluated_so_far(context: runner.Context) -> dict[str, Any]:
    """What an evaluation that is not complete has of each model, with the settings of now."""
    folder = context.folder("eval")
    if runner.done_file(context.root, "eval").exists():
        return {}  # complete, but with other settings
    if (folder / PARTS).exists():
        settings = runner.settings_hash(BY_NAME["eval"], context.config)
        return Parts(folder / PARTS, _weights(context.done)).records(settings)
    paths = {name: folder / f"{name}.json" for name in MODELS}  # of runs before there were parts
    found = {name: read_json(path) for name, path in paths.items() if path.exists()}
    return {n: one for n, one in found.items() if n in context.done and isinstance(one, dict)}


def _weights(done: Done) -> dict[str, str]:
    """The hash of each model's weights."""
    return {name: str(done[name]["results"]["artifact"]) for name in MODELS if name in done}


def read_report(path: Path) -> dict[str, Any]:
    """The report in a report.json. Raises ArtifactError for anything else."""
    report: dict[str, Any] = read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is no report of format {FORMAT}; make it again from its run with "
            "jaxchat report."
        )
    return report


def summary(report: Mapping[str, Any]) -> str:
    """The table of metrics for a terminal."""
    return "\n".join(table(metrics_cells(report["metrics"])))


def final_summary(run: Path, options: str = "") -> str:
    """What a run prints at its end: the metrics, where the report is, how to chat with the model.

    `options` are those of the `jaxchat chat` command that it advises.
    """
    command = Path(sys.executable).with_name("jaxchat")
    on_path = shutil.which("jaxchat") is not None
    chat = f"{'jaxchat' if on_path or not command.exists() else command} chat{options}"
    report = read_report(run / FILES[2])
    best, *others = [name for name in reversed(MODELS[1:]) if name in report["stages"]] or [""]
    other = f"; --stage {' or '.join(others)} talks to another" if others else ""
    return "\n".join(
        [
            "",
            summary(report),
            "",
            f"The report:   {run / 'report.html'} (and report.md)",
            f"Talk to it:   {chat}",
            f'One question: {chat} -p "Who are you?"',
            *([f"This is the model of {best}{other}."] if best else []),
        ]
    )
