"""The table of metrics: what was measured of every model, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxchat.config.schema import MODELS
from jaxchat.runs.tables import count, metric

NOT_COMPARABLE = "not comparable"

# `value`, and where known `interval` (95%) and `total` (answers; of bits per byte: tokens)
Value = dict[str, Any]
Evaluated = Mapping[str, Mapping[str, Any]]


def metrics(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Rows of the table: `name`, `unit`, and under `values` a value for each model that has it.

    `unit` is "share" (of answers, shown in percent), "score" (1 is perfect, 0 is chance) or "bits"
    (per byte, the fewer the better).
    """
    records = evaluated.values()
    cores = dict.fromkeys(core_name(e["core"]) for e in records if e.get("core"))
    tasks = dict.fromkeys(name for e in records for name in e.get("tasks", {}))
    reads: list[tuple[str, str, Callable[[Mapping[str, Any]], Value | None]]] = [
        *((name, "score", lambda e, name=name: _core(e.get("core"), name)) for name in cores),
        ("bits per byte", "bits", lambda e: _bits(e, "bits_per_byte")),
        ("bits per byte, train", "bits", lambda e: _bits(e, "bits_per_byte_train")),
        *((t, "share", lambda e, t=t: _value(e.get("tasks", {}).get(t))) for t in tasks),
        ("ChatCORE", "score", lambda e: _value(e.get("chatcore"))),
        ("ChatCORE + counting", "score", lambda e: _value(e.get("chatcore_counting"))),
        ("mean reward", "share", lambda e: _value(e.get("reward"))),
    ]
    rows = []
    for name, unit, read in reads:
        found = {model: read(evaluated[model]) for model in MODELS if model in evaluated}
        if values := {model: value for model, value in found.items() if value is not None}:
            rows.append({"name": name, "unit": unit, "values": values})
    return rows


def core_record(measured: Mapping[str, Any]) -> dict[str, Any]:
    """CORE (`evals.core.result.CoreResult.to_json`) as the report has it."""
    tasks = {}
    for name, task in measured["tasks"].items():
        low, high = task["interval"]
        tasks[name] = {
            "accuracy": task["accuracy"],
            "centered": task["centered"],
            "low": low,
            "high": high,
            "problems": task["total"],
        }
    return {"core": measured["core"], "name": measured["name"], "tasks": tasks}


def core_name(core: Mapping[str, Any]) -> str:
    """CORE, or what of it this is (`evals.core.result.core_name`), which compares with no other."""
    name = str(core.get("name", "CORE"))
    if name == "CORE" or name.endswith(NOT_COMPARABLE):
        return name
    return f"{name.replace('CORE over', 'CORE of')}, {NOT_COMPARABLE}"  # of an older run


def _value(found: Any) -> Value | None:
    """A number, or a score with its interval and its total where it has them."""
    if not isinstance(found, Mapping):
        return None if found is None else {"value": found}
    value = found["accuracy"] if "accuracy" in found else found["value"]
    return {"value": value, **{key: found[key] for key in ("interval", "total") if key in found}}


def _bits(record: Mapping[str, Any], name: str) -> Value | None:
    found, tokens = _value(record.get(name)), record.get(f"{name}_tokens")
    return found if found is None or tokens is None else {**found, "total": tokens}


def _core(core: Mapping[str, Any] | None, name: str) -> Value | None:
    """CORE of that name, with the interval that those of its tasks' accuracies make."""
    if not core or core_name(core) != name:
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

    The last column says of how many answers, or tokens of text, the values are: `1,319` answers,
    `400 or 1,319` where the models differ, `10.5M tokens`.
    """
    cells: list[tuple[str, ...]] = [("", *MODELS, "of")]
    for row in rows:
        values, unit = row["values"], row["unit"]
        totals = sorted({value["total"] for value in values.values() if "total" in value})
        of = [f"{count(n)} tokens" if unit == "bits" else f"{n:,}" for n in totals]
        shown = (metric(values.get(model), unit) for model in MODELS)
        cells.append((row["name"], *shown, " or ".join(of) or "-"))
    return cells


def tool_use(evaluated: Evaluated) -> dict[str, dict[str, Any]]:
    """How often each model called a tool, and what came of it.

    Counted in `tools` of its record (`calls`, `failed`, `cut`) where the evaluation has that, else
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
