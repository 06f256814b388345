"""Everything that a report has, as JSON, from the records of a run's stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxchat.config.derive import count_params
from jaxchat.config.loading import CONFIGS, to_json
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.runs.report import reproduce
from jaxchat.runs.report.curves import Curve, learning_rates
from jaxchat.runs.report.metrics import core_name, metrics, tool_use
from jaxchat.runs.stages import STAGES

FORMAT = "jaxchat-report-2"
REPORTED = tuple(stage for stage in STAGES if stage.name != "report")
NOT_RUN = "not run yet"
# of a stage's results: in other parts of the report, or for the runner alone
_ELSEWHERE = {"artifact", "parts", "models", "sources", "splits", "compression"}

Done = Mapping[str, Mapping[str, Any]]


def make_report(
    config: RunConfig,
    done: Done,
    environment: Mapping[str, Any],
    git: Mapping[str, Any],
    *,
    curves: Mapping[str, Curve] | None = None,
    sandbox: str = "",
    states: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The report as JSON; a pure function but for the tiers' files, which `reproduce` reads.

    `done` maps each complete stage to its record (see `runner`); that of eval may hold only some
    models. `curves` are those of `read_curves`. `sandbox` says what confined the models' code.
    `states` says of stages that are not complete how far they are (default: not run).
    """
    settings = json.loads(to_json(config))
    evaluated: Mapping[str, Any] = done.get("eval", {}).get("results", {}).get("models", {})
    states = states or {}
    whole = {name: record for name, record in done.items() if name not in states}
    stages = _stages(config, settings, whole)
    planned = [stage.name for stage in REPORTED if not config.leaves_out(stage.name)]
    data = done.get("data", {}).get("results", {})
    cores = {name: e["core"] for name, e in evaluated.items() if e.get("core")}
    return {
        "format": FORMAT,
        "run": {key: settings[key] for key in ("name", "preset", "depth", "seed", "data_ratio")},
        "missing": {name: states.get(name, NOT_RUN) for name in planned if name not in whole},
        "parameters": count_params(config.model),
        "environment": dict(environment),
        "git": dict(git),
        "command": reproduce.command(config, CONFIGS),
        "sandbox": sandbox,
        "metrics": metrics(evaluated),
        "core": {name: cores[name].get("tasks", {}) for name in MODELS if name in cores},
        "core_names": {name: core_name(core) for name, core in cores.items()},
        "core_missing": _core_missing(config, evaluated),
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "dollars": sum(stage["dollars"] for stage in stages.values()),
        "data": {key: data[key] for key in ("sources", "splits") if key in data},
        "compression": done.get("tokenizer", {}).get("results", {}).get("compression", []),
        "stages": stages,
        "curves": _with_rates(config, done, curves or {}),
        "samples": {m: evaluated[m].get("samples", []) for m in MODELS if m in evaluated},
        "tools": tool_use(evaluated),
        "config": settings,
    }


def _stages(config: RunConfig, settings: Mapping[str, Any], done: Done) -> dict[str, Any]:
    """Time, cost, settings and results of each stage; cost is that of the configured hardware."""
    price = config.hardware.dollars_per_hour / 3600
    return {
        stage.name: {
            "seconds": record["seconds"],
            "dollars": record["seconds"] * price,
            "settings": {table: settings[table] for table in stage.tables},
            "results": {k: v for k, v in record["results"].items() if k not in _ELSEWHERE},
        }
        for stage in REPORTED
        if (record := done.get(stage.name)) is not None
    }


def _core_missing(config: RunConfig, evaluated: Mapping[str, Any]) -> str:
    """How to add CORE, where the base model was evaluated without it; else empty."""
    if not config.data.is_dataset or "base" not in evaluated or evaluated["base"].get("core"):
        return ""
    return (
        "CORE was not measured: there was no bundle of its tasks. `jaxchat eval core --download` "
        "fetches it, evaluates the base model, and the next report has it."
    )


def _with_rates(config: RunConfig, done: Done, curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Curves with the learning rates of stages whose number of steps is known."""
    found = {}
    for name, curve in curves.items():
        known = done.get(name, {}).get("results", {}).get("steps", 0)
        steps = known or getattr(config, name).steps
        found[name] = curve | ({"rates": learning_rates(config, name, steps)} if steps else {})
    return found
