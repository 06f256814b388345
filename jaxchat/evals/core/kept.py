"""CORE task by task, each kept in a folder as soon as it is done: nothing is evaluated twice.

FOLDER/TASK-KEY.json    the examples of a task; the key is of weights, tokenizer, data, options
FOLDER/result-KEY.json  the tasks of an evaluation, without their examples; of the keys of all

The names have the beginning of the key, so that no evaluation takes the place of another. Earlier
versions wrote TASK.json and result.json, which are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxchat import paths
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.core.bundle import Bundle
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.core.result import CoreResult, Judged, TaskResult
from jaxchat.model.backend import Compute
from jaxchat.tokenizer.bpe import Tokenizer

FORMAT = "jaxchat-core-1"
RESULT = "result"  # begins the names of results
KEY_CHARACTERS = 12  # of a key, in a file's name


def folder_of(run: Path, stage: str) -> Path:
    """Where a run keeps CORE of one of its models."""
    return run / "eval" / f"core-{stage}"


def results_in(folder: Path) -> list[Path]:
    """The files of `folder` that tell the result of an evaluation."""
    return sorted(folder.glob(f"{RESULT}*.json"))


def _file(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:KEY_CHARACTERS]}.json"


def evaluate_kept(
    folder: Path,
    load: Callable[[], Any],
    digest: str,
    model: ModelConfig,
    tokenizer: Tokenizer,
    bundle: Bundle,
    *,
    compute: Compute,
    mesh: Mesh,
    tasks: Sequence[str] | None = None,
    max_problems: int | None = None,
    context: int | None = None,
    widen: bool = False,
    title: str = "CORE",
) -> tuple[CoreResult, Path]:
    """As `evaluate_core`, less the tasks that `folder` has of these weights, data and options.

    `load` gives the weights, where there is anything to do; `digest` is theirs. Returns the result
    and the file that keeps it. Raises as `evaluate_core` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths.sweep(folder)
    fixed = (
        FORMAT, digest, tokenizer.hash, paths.sha256_text(repr(model)), str(context),
        str(max_problems), jnp.dtype(compute.dtype).name,
        *(["windows"] if not widen and (context or 0) > model.sequence_len else []),
    )  # fmt: skip
    keys = {
        task.label: paths.sha256_text(*fixed, bundle.task_hash(task))
        for task in bundle.select(tasks)
    }

    def keep(result: TaskResult) -> None:
        key = keys[result.label]
        _write_task(_file(folder, result.label, key), key, result)

    read = {label: _read_kept(folder, label, key) for label, key in keys.items()}
    finished = {label: one for label, one in read.items() if one is not None}
    result = evaluate_core(
        load() if len(finished) < len(keys) else None,
        model,
        tokenizer,
        bundle,
        compute=compute,
        mesh=mesh,
        tasks=tasks,
        max_problems=max_problems,
        context=context,
        widen=widen,
        title=title,
        finished=finished,
        on_task=keep,
    )
    told = {"format": FORMAT, "weights": digest, "context": context, **result.to_json()}
    path = _file(folder, RESULT, paths.sha256_text(*keys.values()))
    paths.write_json(path, told)
    return result, path


def _write_task(path: Path, key: str, result: TaskResult) -> None:
    """Keeps one task with its examples."""
    record = {
        "format": FORMAT,
        "key": key,
        "label": result.label,
        "baseline": result.baseline,
        "seconds": result.seconds,
        "examples": [one.to_json() for one in result.judged],
    }
    with paths.atomic_open(path) as file:
        json.dump(record, file)
        file.write("\n")


def _read_kept(folder: Path, label: str, key: str) -> TaskResult | None:
    """A task that is kept, also as earlier versions named its file."""
    return _read_task(_file(folder, label, key), key) or _read_task(folder / f"{label}.json", key)


def _read_task(path: Path, key: str) -> TaskResult | None:
    """What `_write_task` kept, if it is of this model, data and options."""
    if not path.exists():
        return None
    try:
        record = paths.read_json(path)
        if record["key"] != key:
            return None
        judged = tuple(Judged.from_json(one) for one in record["examples"])
        return TaskResult(record["label"], record["baseline"], judged, record["seconds"])
    except (ArtifactError, KeyError, TypeError, ValueError):  # it is only a cache
        return None
