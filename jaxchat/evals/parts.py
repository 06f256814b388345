"""The parts of an evaluation, each in a file of its own, and the record that they make (layer 3).

A part is what one model did at one thing: a task, the bits per byte of a split, its rewards, its
samples. Its file says under `key` what it depends on, as a hash: it is measured again when that is
another one, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.errors import ArtifactError
from jaxchat.evals.chatcore import chatcore, chatcore_counting
from jaxchat.paths import sha256_text

FORMAT = "jaxchat-eval-part-1"
PARTS = "parts"  # the folder in that of the stage
WANTED = "wanted.json"  # beside it: what the evaluation under way is of
TASK = "task-"  # begins the names of parts that are tasks

Found = dict[str, Any]  # a part's result, as JSON


@dataclass(frozen=True)
class Part:
    """What can be measured of a model by itself.

    Attributes:
        model: the stage that made the weights.
        name: what is measured: `bits-train`, `bits-heldout`, `task-NAME`, `reward` or `samples`.
        depends: on what, beside the model: the data and the settings.
        measure: does it.
    """

    model: str
    name: str
    depends: tuple[object, ...]
    measure: Callable[[], Found]


@dataclass(frozen=True)
class Parts:
    """The folder of a run's parts.

    `weights` maps each model to the hash of its weights; `common` is what all parts depend on.
    """

    folder: Path
    weights: Mapping[str, str]
    common: tuple[str, ...] = ()

    def key(self, part: Part) -> str:
        """The hash of all that a part depends on."""
        depends = (str(one) for one in part.depends)
        return sha256_text(FORMAT, part.name, self.weights[part.model], *self.common, *depends)

    def read(self, part: Part) -> dict[str, Any] | None:
        """A part's file, when it is of what the part depends on now; a damaged one is no loss."""
        told = _read(self.folder / f"{part.model}-{part.name}.json")
        return told if told is not None and told["key"] == self.key(part) else None

    def write(self, part: Part, result: Found, seconds: float) -> dict[str, Any]:
        """Keeps what was measured; returns what `read` will."""
        told = {
            "format": FORMAT,
            "key": self.key(part),
            "model": part.model,
            "name": part.name,
            "weights": self.weights[part.model],
            "seconds": seconds,
            "result": result,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        paths.write_json(self.folder / f"{part.model}-{part.name}.json", told)
        return told

    def want(self, parts: Iterable[Part], settings: str) -> None:
        """Notes which parts an evaluation is of, and the hash of its settings, for `records`."""
        keys = [self.key(part) for part in parts]
        self.folder.mkdir(parents=True, exist_ok=True)
        paths.write_json(
            self.folder.parent / WANTED, {"format": FORMAT, "settings": settings, "keys": keys}
        )

    def records(self, settings: str) -> dict[str, dict[str, Any]]:
        """The record of each model that has parts that are wanted with these settings.

        The parts must be of its present weights. An evaluation that an earlier version began does
        not say which ones it wants; then all are taken.
        """
        wanted = _wanted(self.folder.parent / WANTED)
        if wanted is not None and wanted["settings"] != settings:
            return {}  # an evaluation with other settings
        found: dict[str, dict[str, Found]] = {}
        files = [_read(path) for path in sorted(self.folder.glob("*.json"))]
        for told in files:
            if told is None or told["weights"] != self.weights.get(told["model"]):
                continue
            if wanted is None or told["key"] in wanted["keys"]:
                found.setdefault(told["model"], {})[told["name"]] = told["result"]
        return {model: record(found[model]) for model in self.weights if model in found}


def _wanted(path: Path) -> dict[str, Any] | None:
    try:
        told = paths.read_json(path)
    except ArtifactError:
        return None
    whole = isinstance(told, dict) and {"settings", "keys"} <= told.keys()
    return told if whole and isinstance(told["keys"], list) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = paths.read_json(path)
    except ArtifactError:
        return None
    keys = {"format", "key", "model", "name", "weights", "seconds", "result"}
    whole = isinstance(told, dict) and keys <= told.keys() and told["format"] == FORMAT
    return told if whole else None


def record(found: Mapping[str, Found]) -> dict[str, Any]:
    """What the report reads of a model, of its parts by name."""
    told: dict[str, Any] = {}
    for name, key in (("bits-heldout", "bits_per_byte"), ("bits-train", "bits_per_byte_train")):
        if name in found:
            told |= {key: found[name]["bits_per_byte"], f"{key}_tokens": found[name]["tokens"]}
    tasks = {n.removeprefix(TASK): result for n, result in found.items() if n.startswith(TASK)}
    told |= of_tasks(tasks) if tasks else {}
    if "reward" in found:
        told["reward"] = found["reward"]
    if "samples" in found:
        told["samples"] = found["samples"]["samples"]
    return told


def with_more(told: Mapping[str, Any], task: str, result: Found) -> dict[str, Any]:
    """What changes of a record when a task was also measured on more problems."""
    tasks = told.get("tasks", {})
    if result["total"] <= tasks.get(task, {}).get("total", 0):
        return {}
    return of_tasks({**tasks, task: result})


def of_tasks(tasks: Mapping[str, Found]) -> dict[str, Any]:
    """What a record has of tasks (`Result.to_json`): they, calls of tools, and ChatCORE."""
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
