"""Results that an evaluation saves one by one, and reads back instead of measuring again.

A file has under `key` the hash of all that its result depends on: with another key it is measured
again, and only then. A damaged file costs no more than that.

RUN/eval/parts/MODEL-PART.json     one part: a task, the bits per byte of a split, rewards, samples
RUN/eval/wanted.json               the keys of the parts that the last evaluation is of
RUN/eval/core-STAGE/TASK-KEY.json  the examples of a task of CORE
RUN/eval/core-STAGE/result-KEY.json  the tasks of an evaluation, without their examples

The names of CORE's files have the beginning of the key, so that no evaluation replaces another's.
Earlier versions wrote TASK.json and result.json, which are read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.errors import ArtifactError
from jaxchat.evals.scores import chatcore, chatcore_counting
from jaxchat.paths import sha256_text

FORMAT = "jaxchat-eval-part-1"
PARTS = "parts"  # the folder in that of the stage
WANTED = "wanted.json"
TASK = "task-"  # begins the names of parts that are tasks
CORE_RESULT = "result"  # begins the names of results
KEY_CHARACTERS = 12  # of a key, in a file's name

Found = dict[str, Any]  # a part's result, as JSON


def read_record(path: Path, *fields: str) -> dict[str, Any] | None:
    """A saved record; None where it is missing, damaged or lacks one of `fields`."""
    try:
        record = paths.read_json(path)
    except ArtifactError:
        return None
    return record if isinstance(record, dict) and record.keys() >= set(fields) else None


def core_folder(run: Path, stage: str) -> Path:
    """The folder of a run's results on CORE of one of its models."""
    return run / "eval" / f"core-{stage}"


def core_results(folder: Path) -> list[Path]:
    """The files of `folder` that hold the result of an evaluation."""
    return sorted(folder.glob(f"{CORE_RESULT}*.json"))


def keyed_file(folder: Path, name: str, key: str) -> Path:
    """The file of a result with a key, the hash of all that it depends on."""
    return folder / f"{name}-{key[:KEY_CHARACTERS]}.json"


@dataclass(frozen=True)
class Part:
    """One measurement of one model."""

    model: str  # the stage that made the weights
    name: str  # `bits-train`, `bits-heldout`, `task-NAME`, `reward` or `samples`
    depends: tuple[object, ...]  # beside the model: the data and the settings
    measure: Callable[[], Found]


@dataclass(frozen=True)
class Parts:
    """The folder of a run's parts."""

    folder: Path
    weights: Mapping[str, str]  # model -> hash of its weights
    common: tuple[str, ...] = ()  # what all parts depend on

    def key(self, part: Part) -> str:
        """The hash of all that a part depends on."""
        depends = (str(one) for one in part.depends)
        return sha256_text(FORMAT, part.name, self.weights[part.model], *self.common, *depends)

    def read(self, part: Part) -> dict[str, Any] | None:
        """A part's record, if its key is the present one."""
        saved = _read_part(self.folder / f"{part.model}-{part.name}.json")
        return saved if saved is not None and saved["key"] == self.key(part) else None

    def write(self, part: Part, result: Found, seconds: float) -> dict[str, Any]:
        """Saves a result; returns what `read` will."""
        record = {
            "format": FORMAT,
            "key": self.key(part),
            "model": part.model,
            "name": part.name,
            "weights": self.weights[part.model],
            "seconds": seconds,
            "result": result,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        paths.write_json(self.folder / f"{part.model}-{part.name}.json", record)
        return record

    def want(self, parts: Iterable[Part], settings: str) -> None:
        """Saves which parts an evaluation is of, and the hash of its settings, for `records`."""
        keys = [self.key(part) for part in parts]
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {"format": FORMAT, "settings": settings, "keys": keys}
        paths.write_json(self.folder.parent / WANTED, wanted)

    def records(self, settings: str) -> dict[str, dict[str, Any]]:
        """The record of each model that has parts that are wanted with these settings.

        The parts must be of its present weights. An evaluation that an earlier version began does
        not say which ones it wants; then all are taken.
        """
        wanted = read_record(self.folder.parent / WANTED, "settings", "keys")
        if wanted is not None and not isinstance(wanted["keys"], list):
            wanted = None
        if wanted is not None and wanted["settings"] != settings:
            return {}  # an evaluation with other settings
        found: dict[str, dict[str, Found]] = {}
        for saved in map(_read_part, sorted(self.folder.glob("*.json"))):
            if saved is None or saved["weights"] != self.weights.get(saved["model"]):
                continue
            if wanted is None or saved["key"] in wanted["keys"]:
                found.setdefault(saved["model"], {})[saved["name"]] = saved["result"]
        return {model: record(found[model]) for model in self.weights if model in found}


def _read_part(path: Path) -> dict[str, Any] | None:
    fields = ("format", "key", "model", "name", "weights", "seconds", "result")
    saved = read_record(path, *fields)
    return saved if saved is not None and saved["format"] == FORMAT else None


def record(found: Mapping[str, Found]) -> dict[str, Any]:
    """A model's record, as the report reads it, from the results of its parts by name."""
    values: dict[str, Any] = {}
    for name, key in (("bits-heldout", "bits_per_byte"), ("bits-train", "bits_per_byte_train")):
        if name in found:
            values |= {key: found[name]["bits_per_byte"], f"{key}_tokens": found[name]["tokens"]}
    tasks = {n.removeprefix(TASK): result for n, result in found.items() if n.startswith(TASK)}
    values |= of_tasks(tasks) if tasks else {}
    if "reward" in found:
        values["reward"] = found["reward"]
    if "samples" in found:
        values["samples"] = found["samples"]["samples"]
    return values


def with_more(values: Mapping[str, Any], task: str, result: Found) -> dict[str, Any]:
    """The entries of a record that change when a task was also measured on more problems."""
    tasks = values.get("tasks", {})
    if result["total"] <= tasks.get(task, {}).get("total", 0):
        return {}
    return of_tasks({**tasks, task: result})


def of_tasks(tasks: Mapping[str, Found]) -> dict[str, Any]:
    """The entries of a record for tasks (`Result.to_json`), calls of tools, and ChatCORE."""
    accuracies = {name: result["accuracy"] for name, result in tasks.items()}
    means = {
        "chatcore": chatcore(accuracies),
        "chatcore_counting": chatcore_counting(accuracies),
    }
    return {
        "tasks": dict(tasks),
        "tools": {
            "calls": sum(result.get("calls", 0) for result in tasks.values()),
            "failed": sum(result.get("failed_calls", 0) for result in tasks.values()),
        },
        **{name: mean for name, mean in means.items() if mean is not None},
    }
