"""Exact match on held-out problems, sampled through the engine with its tools (layer 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxchat.infer.engine import Completion, Engine, Request
from jaxchat.progress import Progress
from jaxchat.tasks import Problem, Task
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat import Part, parse_completion, render_prompt


@dataclass(frozen=True)
class Score:
    """A share of right answers with its 95% interval (Wilson, 1927)."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """Right answers over all."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        z, n, p = 1.96, self.total, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # The formula gives a bound of 0 or 1 only up to rounding.
        low = 0.0 if self.right == 0 else middle - half
        high = 1.0 if self.right == n else middle + half
        return low, high

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "right": self.right,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
        }


def prompt_of(problem: Problem, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a problem up to where the assistant answers."""
    return tuple(render_prompt(problem.conversation["messages"][:-1], tokenizer))


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    title: str = "",
) -> list[list[Completion]]:
    """`samples` completions of every problem; problem i is sampled with seed + i."""
    requests = [
        Request(
            tokens=prompt_of(problem, tokenizer),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed + number,
            n=samples,
        )
        for number, problem in enumerate(problems)
    ]
    if not title:
        return engine.generate(requests)
    with Progress(title, len(requests), "problem") as progress:
        return engine.generate(requests, progress=progress.update)


def parts_of(completion: Completion, tokenizer: Tokenizer) -> list[Part]:
    """What a completion says and calls."""
    return parse_completion(completion.tokens, tokenizer)


def evaluate_tasks(
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    *,
    problems: int,
    max_tokens: int,
    title: str,
) -> dict[str, Score]:
    """Greedy exact match over the first `problems` held-out problems of every task."""
    chosen = [
        (name, task.problem("test", index))
        for name, task in tasks.items()
        for index in range(problems)
    ]
    completions = answer(
        engine, tokenizer, [problem for _, problem in chosen], max_tokens=max_tokens, title=title
    )
    right = dict.fromkeys(tasks, 0)
    for (name, problem), (completion,) in zip(chosen, completions, strict=True):
        right[name] += tasks[name].grade(problem, parts_of(completion, tokenizer))
    return {name: Score(count, problems) for name, count in right.items()}


def mean_reward(
    engine: Engine,
    tokenizer: Tokenizer,
    task: Task,
    *,
    problems: int,
    samples: int,
    max_tokens: int,
    seed: int,
    title: str,
) -> Score:
    """The share of samples at temperature 1 that solve their held-out problem: RL's objective."""
    chosen = [task.problem("test", index) for index in range(problems)]
    completions = answer(
        engine, tokenizer, chosen, max_tokens=max_tokens, temperature=1.0, samples=samples,
        seed=seed, title=title,
    )  # fmt: skip
    right = sum(
        task.grade(problem, parts_of(completion, tokenizer))
        for problem, group in zip(chosen, completions, strict=True)
        for completion in group
    )
    return Score(right, problems * samples)
