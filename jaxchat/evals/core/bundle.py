"""The folder that holds CORE's tasks: `core.yaml`, `eval_meta_data.csv`, `eval_data/**.jsonl`.

This is the layout of nanochat's eval_bundle, which comes from DCLM and MosaicML's gauntlet.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jaxchat.data.files.compressed import refused
from jaxchat.data.files.text import read_lines, read_text
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import sha256_file, sha256_text

TASKS = 22  # of the whole of CORE
CONFIG, BASELINES, DATA = "core.yaml", "eval_meta_data.csv", "eval_data"
SHUFFLE_SEED = 1337  # nanochat's, so that the first n examples are the ones it takes

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Example = Mapping[str, Any]
# kind -> what an example must have, and of which type
FIELDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}


@dataclass(frozen=True)
class CoreTask:
    """One task, as core.yaml describes it."""

    label: str  # its name; two tasks may have the same data
    kind: Kind  # how its examples are asked and judged
    shots: int  # solved examples before each question
    delimiter: str  # between a question and its answer
    baseline: float  # the accuracy of guessing, from 0 to 1
    path: Path  # its examples, a JSON object a line


@dataclass(frozen=True)
class Bundle:
    """The tasks of a bundle whose data is there, and the labels of those without."""

    folder: Path
    tasks: tuple[CoreTask, ...]
    missing: tuple[str, ...]

    def task_hash(self, task: CoreTask) -> str:
        """Changes with the task's description and data."""
        described = (task.label, task.kind, str(task.shots), task.delimiter, str(task.baseline))
        return sha256_text(*described, sha256_file(task.path))

    @property
    def hash(self) -> str:
        """Changes with any of its tasks."""
        return sha256_text(*map(self.task_hash, self.tasks), *self.missing)

    def select(self, labels: Sequence[str] | None) -> tuple[CoreTask, ...]:
        """The tasks of these labels, in the bundle's order (None: all).

        Raises ConfigError for a label that the bundle does not have.
        """
        if labels is None:
            return self.tasks
        there = [task.label for task in self.tasks]
        for label in labels:
            if label in self.missing:
                raise ConfigError(
                    f"the bundle {self.folder} describes the task {label!r} but has no data for "
                    f"it; it has data for {', '.join(there)}."
                )
            if label not in there:
                raise ConfigError(
                    f"there is no task {label!r} in the bundle {self.folder}; there are "
                    f"{', '.join(there)}."
                )
        return tuple(task for task in self.tasks if task.label in labels)


def read_bundle(folder: Path) -> Bundle:
    """Reads which tasks there are. Raises ArtifactError for what is no bundle."""
    baselines = _read_baselines(folder / BASELINES)
    described = [_task(entry, folder, baselines) for entry in _read_entries(folder / CONFIG)]
    there = tuple(task for task in described if task.path.is_file())
    missing = tuple(task.label for task in described if not task.path.is_file())
    if not there:
        raise ArtifactError(
            f"the bundle {folder} has the data of none of its {len(described)} tasks; it belongs "
            f"into {folder / DATA}."
        )
    return Bundle(folder, there, missing)


def _read(path: Path) -> str:
    """The text of one of a bundle's own files."""
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path.parent} is no bundle of CORE's tasks: it has no {path.name}; name the folder "
            "of nanochat's eval_bundle."
        ) from error
    except OSError as error:
        raise refused(path, error) from error


def _read_entries(path: Path) -> list[Mapping[str, Any]]:
    import yaml  # type: ignore[import-untyped]

    try:
        entries = yaml.safe_load(_read(path))["icl_tasks"]
        if not isinstance(entries, list) or not entries:
            raise TypeError("icl_tasks is no list of tasks")
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} does not list CORE's tasks ({reason}).") from error
    return entries


def _read_baselines(path: Path) -> dict[str, float]:
    """Label -> the accuracy of guessing; the file has percents."""
    try:
        rows = csv.DictReader(io.StringIO(_read(path)))
        return {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ArtifactError(
            f"{path} is no table with columns 'Eval Task' and 'Random baseline' in percent "
            f"({error})."
        ) from error


def _task(entry: Mapping[str, Any], folder: Path, baselines: Mapping[str, float]) -> CoreTask:
    try:
        label, kind, shots = entry["label"], entry["icl_task_type"], int(entry["num_fewshot"][0])
        path = folder / DATA / entry["dataset_uri"]
        delimiter = str(entry.get("continuation_delimiter", " "))
        inside = path.resolve().is_relative_to((folder / DATA).resolve())
        if not isinstance(label, str):
            raise TypeError("its label is no text")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{folder / CONFIG} has a task without a usable label, dataset_uri, icl_task_type or "
            f"num_fewshot ({error!r}): {entry!r}."
        ) from error
    if kind not in get_args(Kind):
        raise ArtifactError(
            f"the task {label} of {folder / CONFIG} is of type {kind!r}; known are "
            f"{', '.join(get_args(Kind))}."
        )
    if label not in baselines or not 0 <= baselines[label] < 1:
        raise ArtifactError(
            f"{folder / BASELINES} has no random baseline from 0 to below 100 for {label}."
        )
    if not inside:
        raise ArtifactError(f"the data of {label} is outside of {folder / DATA}: {path}.")
    return CoreTask(label, kind, shots, delimiter, baselines[label], path)


def read_examples(task: CoreTask, limit: int | None = None) -> list[Example]:
    """The task's examples in nanochat's order; the first `limit`, if given.

    Raises ArtifactError for damaged lines, or when there are too few to show.
    """
    examples = [_parse(line, task, number) for number, line, _ in read_lines(task.path)]
    random.Random(SHUFFLE_SEED).shuffle(examples)
    examples = examples[:limit]
    if len(examples) <= task.shots:
        raise ArtifactError(
            f"{task.label} shows {task.shots} solved examples before each question, and has "
            f"{len(examples)}; take more of them (--max-problems)."
        )
    return examples


def _parse(line: str, task: CoreTask, number: int) -> Example:
    try:
        example = json.loads(line)
        fields = FIELDS[task.kind]
        wrong = [name for name, kind in fields.items() if not isinstance(example.get(name), kind)]
        if wrong:
            raise ValueError(f"no usable {', '.join(wrong)}")
        options = example.get("choices" if task.kind == "multiple_choice" else "context_options")
        if "gold" in fields and not 0 <= example["gold"] < len(options):
            raise ValueError(f"gold is {example['gold']} of {len(options)} choices")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"line {number} of {task.path} is no example of type {task.kind} ({error})."
        ) from error
    checked: Example = example
    return checked
