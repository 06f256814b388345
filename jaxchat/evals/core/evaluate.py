"""Evaluates a model on CORE's tasks, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jax.sharding import Mesh

from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ConfigError
from jaxchat.evals.core.bundle import Bundle, CoreTask, Example, read_examples
from jaxchat.evals.core.result import CoreResult, Judged, TaskResult, judge
from jaxchat.evals.core.scoring import ChoiceScore, Sizes, score_rows
from jaxchat.evals.core.sequences import task_rows
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.progress import Progress
from jaxchat.tokenizer.bpe import Tokenizer


def evaluate_core(
    params: Any,
    model: ModelConfig,
    tokenizer: Tokenizer,
    bundle: Bundle,
    *,
    compute: Compute = PLAIN,
    mesh: Mesh | None = None,
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
        params: as training has them on `mesh`; without a mesh, on the first device.
        max_problems: takes only the first examples of each task; solved ones are drawn from them.
        context: prompts keep their last so many tokens; the model's sequence length if None. Of
            more than that, each layer still sees what it sees in training, as in nanochat.
        widen: layers that see all of a context see all of a longer one, too: nanochat of November
            2025, which `classic` is, has no windows.
        sizes: how much is computed at once, if not what suits the device.
        title: of the progress.
        finished: results of tasks that need not be done again, by label.
        on_task: is told each new result.

    Raises ConfigError for labels or a context that cannot be, ArtifactError for damaged data.
    """
    chosen = bundle.select(tasks)
    context = context or model.sequence_len
    model = _widened(model, context) if widen else model
    if context < 2:
        raise ConfigError(f"a context of {context} tokens leaves nothing to predict; take more.")
    results = []
    for task in chosen:
        result = (finished or {}).get(task.label)
        if result is None:
            result = _evaluate_task(
                params, model, tokenizer, task, compute=compute, mesh=mesh,
                max_problems=max_problems, context=context, sizes=sizes, title=title,
            )  # fmt: skip
            on_task(result)
        results.append(result)
    return CoreResult(tuple(results), bundle.missing, max_problems)


def _widened(model: ModelConfig, context: int) -> ModelConfig:
    """A model without windows for a context; one with windows keeps them, which depend on it."""
    if context > model.sequence_len and set(model.window_pattern) == {"L"}:
        return replace(model, sequence_len=context)
    return model


def _evaluate_task(
    params: Any,
    model: ModelConfig,
    tokenizer: Tokenizer,
    task: CoreTask,
    *,
    compute: Compute,
    mesh: Mesh | None,
    max_problems: int | None,
    context: int,
    sizes: Sizes | None,
    title: str,
) -> TaskResult:
    began = time.monotonic()
    examples = read_examples(task, max_problems)
    rows = task_rows(task, examples, tokenizer, context)
    with Progress(f"{title} {task.label}", len(rows), "row") as progress:
        scores = score_rows(
            rows, params, model, compute, mesh, sizes=sizes, progress=progress.advance
        )
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
