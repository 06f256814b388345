"""The table of metrics: what was measured of every model, with confidence intervals (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.runs.tables import count

NOT_COMPARABLE = "not comparable"

TRAINING_TEXT = "bits per byte, train"
WITH_COUNTING = "ChatCORE + counting"

# `value`, and where known `interval` (95%) and `total` (answers; of bits per byte: tokens)
Value = dict[str, Any]
Evaluated = Mapping[str, Mapping[str, Any]]


def metrics(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Rows of the table: `name`, `unit`, and under `values` a value for each model that has it.

    `unit` is "share" (of answers, told in percent), "score" (1 is perfect, 0 is chance) or "bits"
    (per byte, the fewer the better).
    """
    tasks = {model: e.get("tasks", {}) for model, e in evaluated.items()}
    names = dict.fromkeys(name for found in tasks.values() for name in found)
    cores = {model: e.get("core") for model, e in evaluated.items()}
    rows = [
        *(
            _row(name, "score", cores, lambda core, name=name: _core(core, name))
            for name in dict.fromkeys(core_name(core) for core in cores.values() if core)
        ),
        _row("bits per byte", "bits", evaluated, lambda e: _bits(e, "bits_per_byte")),
        _row(TRAINING_TEXT, "bits", evaluated, lambda e: _bits(e, "bits_per_byte_train")),
        *(
            _row(name, "share", tasks, lambda found, name=name: _share(found.get(name)))
            for name in names
        ),
        _row("ChatCORE", "score", evaluated, lambda e: _number(e.get("chatcore"))),
        _row(WITH_COUNTING, "score", evaluated, lambda e: _number(e.get("chatcore_counting"))),
        _row("mean reward", "share", evaluated, lambda e: _share(e.get("reward"))),
    ]
    return [row for row in rows if row["values"]]


def core_record(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `evals.core` tells of CORE (`CoreResult.to_json`), as the report keeps it."""
    tasks = {}
    for name, task in told["tasks"].items():
        low, high = task["interval"]
        tasks[name] = {
            "accuracy": task["accuracy"],
            "centered": task["centered"],
            "low": low,
            "high": high,
            "problems": task["total"],
        }
    return {"core": told["core"], "name": told["name"], "tasks": tasks}


def core_name(core: Mapping[str, Any]) -> str:
    """CORE, or what of it this is (`evals.core.result.core_name`), which compares with no other."""
    name = str(core.get("name", "CORE"))
    if name == "CORE" or name.endswith(NOT_COMPARABLE):
        return name
    return f"{name.replace('CORE over', 'CORE of')}, {NOT_COMPARABLE}"  # of an older run


def _row(name: str, unit: str, evaluated: Mapping[str, Any], read: Any) -> dict[str, Any]:
    found = {model: read(evaluated[model]) for model in MODELS if model in evaluated}
    values = {model: value for model, value in found.items() if value is not None}
    return {"name": name, "unit": unit, "values": values}


def _share(score: Mapping[str, Any] | None) -> Value | None:
    if score is None:
        return None
    kept = {key: score[key] for key in ("interval", "total") if key in score}
    return {"value": score["accuracy"], **kept}


def _number(value: Any) -> Value | None:
    if isinstance(value, Mapping):
        return {key: value[key] for key in ("value", "interval", "total") if key in value}
    return None if value is None else {"value": value}


def _bits(record: Mapping[str, Any], name: str) -> Value | None:
    found, tokens = _number(record.get(name)), record.get(f"{name}_tokens")
    return found if found is None or tokens is None else {**found, "total": tokens}


def _core(core: Mapping[str, Any] | None, name: str) -> Value | None:
    """CORE of that name, with the interval that those of its tasks' accuracies make."""
    if core is None or core_name(core) != name:
        return None
    value: Value = {"value": core["core"]}
    if tasks := list(core.get("tasks", {}).values()):
        value["interval"] = core_interval(core["core"], tasks)
        value["total"] = sum(int(task["problems"]) for task in tasks)
    return value


def core_interval(core: float, tasks: list[Mapping[str, Any]]) -> list[float]:
    """The 95% interval of a mean of centred accuracies, from the interval of each accuracy.

    Errors of independent estimates add as squares, each side for itself: the method of variance
    estimates recovery (Zou and Donner, 2008).
    """
    sides = []
    for bound in ("low", "high"):
        squares = 0.0
        for task in tasks:
            scale = 1 / (1 - chance(task))  # of centring: (accuracy - chance) / (1 - chance)
            squares += (scale * (task[bound] - task["accuracy"])) ** 2
        sides.append(math.sqrt(squares) / len(tasks))
    return [core - sides[0], core + sides[1]]


def chance(task: Mapping[str, Any]) -> float:
    """The accuracy of guessing, which the accuracy and its centred value imply."""
    if task["centered"] >= 1:
        return 0.0  # whatever it is, nothing was missed
    return float((task["accuracy"] - task["centered"]) / (1 - task["centered"]))


def metrics_cells(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of metrics as text, its head first: shared by the reports and the terminal.

    The last column says of how many answers, or tokens of text, the values are.
    """
    cells: list[tuple[str, ...]] = [("", *MODELS, "of")]
    cells += [
        (row["name"], *(told(row["values"].get(model), row["unit"]) for model in MODELS), _of(row))
        for row in rows
    ]
    return cells


def _of(row: Mapping[str, Any]) -> str:
    """`1,319` answers, `400 or 1,319` where the models differ, `10.5M tokens`."""
    totals = sorted({value["total"] for value in row["values"].values() if "total" in value})
    if row["unit"] == "bits":
        return " or ".join(f"{count(total)} tokens" for total in totals) or "-"
    return " or ".join(f"{total:,}" for total in totals) or "-"


def told(value: Mapping[str, Any] | None, unit: str) -> str:
    """A value with its interval: `85.5% [80.5, 89.5]`, `0.2219 [0.2101, 0.2337]` or `1.750`."""
    if value is None:
        return "-"
    show: Callable[[float], str] = {
        "share": lambda v: f"{100 * v:.1f}",
        "score": lambda v: f"{v:.4f}",
        "bits": lambda v: f"{v:.3f}",
    }[unit]
    text = show(value["value"]) + ("%" if unit == "share" else "")
    if "interval" not in value:
        return text
    low, high = value["interval"]
    return f"{text} [{show(low)}, {show(high)}]"


def tool_use(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    """How often each model called a tool, and what came of it.

    Counted in `tools` of its record (`calls`, `failed`, `cut`) where the evaluation kept that, else
    in its samples. Failed: the tool answered with an error. Cut: no answer came, the reply was too
    long.
    """
    found = {}
    for model in MODELS:
        record = evaluated.get(model, {})
        if "tools" in record:
            found[model] = {"where": "evaluation", "cut": 0, **record["tools"]}
        elif answers := [s["parts"] for s in record.get("samples", []) if "parts" in s]:
            found[model] = {"where": "samples", "answers": len(answers), **_count_calls(answers)}
    return found


def _count_calls(answers: Iterable[list[Mapping[str, str]]]) -> dict[str, int]:
    calls = failed = cut = 0
    for parts in answers:
        for part, after in zip(parts, [*parts[1:], {"type": "text"}], strict=True):
            if part["type"] != "python":
                continue
            calls += 1
            if after["type"] != "python_output" or not after["text"]:
                cut += 1
            elif after["text"].startswith("error"):
                failed += 1
    return {"calls": calls, "failed": failed, "cut": cut}
