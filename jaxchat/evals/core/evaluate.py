"""Evaluates a model on CORE's tasks one by one, and saves each as soon as it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

import jax.numpy as jnp

from jaxchat import paths
from jaxchat.errors import ConfigError
from jaxchat.evals.core.bundle import Bundle, CoreTask, Example, read_examples
from jaxchat.evals.core.prompts import task_rows
from jaxchat.evals.core.result import CoreResult, Judged, TaskResult, judge
from jaxchat.evals.core.scoring import ChoiceScore, Sizes, score_rows
from jaxchat.evals.model import EvalModel
from jaxchat.evals.saved import CORE_RESULT, keyed_file, read_record
from jaxchat.progress import Progress

FORMAT = "jaxchat-core-1"


def evaluate_core(
    model: EvalModel,
    bundle: Bundle,
    *,
    tasks: Sequence[str] | None = None,
    max_problems: int | None = None,
    context: int | None = None,
    widen: bool = False,
    sizes: Sizes | None = None,
    title: str = "CORE",
    finished: Mapping[str, TaskResult] | None = None,
    on_task: Callable[[TaskResult], object] = lambda result: None,
) -> CoreResult:
    """Evaluates the tasks of `bundle` (of `tasks`, if given).

    Args:
        max_problems: takes only the first examples of each task; solved ones are drawn from them.
        context: prompts are cut to their last tokens, this many; the model's sequence length if
            None. Of more than that, each layer still sees what it sees in training, as in nanochat.
        widen: layers that see all of a context see all of a longer one, too: nanochat of November
            2025, which `classic` is, has no windows.
        sizes: how much is computed at once, if not what suits the device.
        title: of the progress.
        finished: results of tasks that need not be done again, by label.
        on_task: called with each new result.

    Raises ConfigError for labels or a context that cannot be, ArtifactError for damaged data.
    """
    chosen = bundle.select(tasks)
    context = context or model.config.sequence_len
    model = _widened(model, context) if widen else model
    if context < 2:
        raise ConfigError(f"a context of {context} tokens leaves nothing to predict; take more.")
    results = []
    for task in chosen:
        result = (finished or {}).get(task.label)
        if result is None:
            result = _evaluate_task(
                model, task, max_problems=max_problems, context=context, sizes=sizes, title=title
            )
            on_task(result)
        results.append(result)
    return CoreResult(tuple(results), bundle.missing, max_problems)


def _widened(model: EvalModel, context: int) -> EvalModel:
    """A model without windows for a context; one with windows keeps them, which depend on it."""
    config = model.config
    if context > config.sequence_len and set(config.window_pattern) == {"L"}:
        wide = replace(config, sequence_len=context)
        return replace(model, load=lambda: model.params, config=wide)
    return model


def _evaluate_task(
    model: EvalModel,
    task: CoreTask,
    *,
    max_problems: int | None,
    context: int,
    sizes: Sizes | None,
    title: str,
) -> TaskResult:
    began = time.monotonic()
    examples = read_examples(task, max_problems)
    rows = task_rows(task, examples, model.tokenizer, context)
    with Progress(f"{title} {task.label}", len(rows), "row") as progress:
        scores = score_rows(rows, model, sizes=sizes, progress=progress.advance)
    judged = tuple(_judge(task, index, example, scores) for index, example in enumerate(examples))
    return TaskResult(task.label, task.baseline, judged, time.monotonic() - began)


def _judge(
    task: CoreTask,
    index: int,
    example: Example,
    scores: Mapping[tuple[int, int], ChoiceScore],
) -> Judged:
    options = {"multiple_choice": "choices", "schema": "context_options"}.get(task.kind)
    count = len(example[options]) if options else 1
    found = [scores[index, choice] for choice in range(count)]
    return judge(task.kind, example.get("gold", 0), [f.loss for f in found], found[0].greedy)


class CoreOptions(TypedDict, total=False):
    """The options of `evaluate_core` that `evaluate_saved` has, too."""

    tasks: Sequence[str] | None
    max_problems: int | None
    context: int | None
    widen: bool
    title: str


def evaluate_saved(
    folder: Path, model: EvalModel, bundle: Bundle, **options: Unpack[CoreOptions]
) -> tuple[CoreResult, Path]:
    """As `evaluate_core`, less the tasks that `folder` has of these weights, data and options.

    The weights are read if a task is missing. Returns the result and its file (see `evals.saved`).
    Raises as `evaluate_core` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths.sweep(folder)
    context = options.get("context")
    has_windows = (context or 0) > model.config.sequence_len and not options.get("widen", False)
    fixed = (
        FORMAT, model.digest, model.tokenizer.hash, paths.sha256_text(repr(model.config)),
        str(context), str(options.get("max_problems")), jnp.dtype(model.compute.dtype).name,
        *(["windows"] if has_windows else []),
    )  # fmt: skip
    keys = {
        task.label: paths.sha256_text(*fixed, bundle.task_hash(task))
        for task in bundle.select(options.get("tasks"))
    }
    read = {label: _read_task(folder, label, key) for label, key in keys.items()}
    finished = {label: task for label, task in read.items() if task is not None}
    result = evaluate_core(
        model,
        bundle,
        finished=finished,
        on_task=lambda task: _write_task(folder, keys[task.label], task),
        **options,
    )
    path = keyed_file(folder, CORE_RESULT, paths.sha256_text(*keys.values()))
    record = {"format": FORMAT, "weights": model.digest, "context": context, **result.to_json()}
    paths.write_json(path, record)
    return result, path


def _write_task(folder: Path, key: str, result: TaskResult) -> None:
    """Saves one task with its examples."""
    record = {
        "format": FORMAT,
        "key": key,
        "label": result.label,
        "baseline": result.baseline,
        "seconds": result.seconds,
        "examples": [one.to_json() for one in result.judged],
    }
    with paths.atomic_open(keyed_file(folder, result.label, key)) as file:
        json.dump(record, file)
        file.write("\n")


def _read_task(folder: Path, label: str, key: str) -> TaskResult | None:
    """A saved task with this key, also under the name that earlier versions gave its file."""
    for path in (keyed_file(folder, label, key), folder / f"{label}.json"):
        record = read_record(path, "key", "label", "baseline", "seconds", "examples")
        if record is not None and record["key"] == key:
            try:
                judged = tuple(Judged.from_json(one) for one in record["examples"])
            except (KeyError, TypeError, ValueError):
                continue
            return TaskResult(record["label"], record["baseline"], judged, record["seconds"])
    return None
