"""Results of CORE: an example, a task, all tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxchat.evals.core.bundle import TASKS
from jaxchat.evals.scores import Score


@dataclass(frozen=True)
class Judged:
    """One example and the model's choice."""

    # the choice of the smallest mean loss; of language modelling, 0 when every token of the
    # continuation is the most probable one, else -1
    prediction: int
    gold: int  # the right choice; 0 in language modelling
    # of each choice the mean -log p of its scored tokens, in nats; nan where a choice has none,
    # because the others begin with all of it
    losses: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """For a line of a dump; nan becomes null."""
        losses = [None if math.isnan(loss) else loss for loss in self.losses]
        return {"prediction": self.prediction, "gold": self.gold, "losses": losses}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Judged:
        """The inverse of `to_json`."""
        losses = tuple(math.nan if loss is None else float(loss) for loss in value["losses"])
        return cls(int(value["prediction"]), int(value["gold"]), losses)


@dataclass(frozen=True)
class TaskResult:
    """One task: its examples in nanochat's order, `baseline` the accuracy of guessing."""

    label: str
    baseline: float
    judged: tuple[Judged, ...]
    seconds: float

    @property
    def score(self) -> Score:
        """Right answers of all, with the 95% interval."""
        return Score(sum(one.prediction == one.gold for one in self.judged), len(self.judged))

    @property
    def centered(self) -> float:
        """0 for guessing, 1 for all right."""
        return (self.score.accuracy - self.baseline) / (1 - self.baseline)


@dataclass(frozen=True)
class CoreResult:
    """All tasks that were evaluated; `missing` are those of the bundle without data."""

    tasks: tuple[TaskResult, ...]
    missing: tuple[str, ...] = ()
    max_problems: int | None = None

    @property
    def core(self) -> float:
        """The mean of the centred accuracies."""
        return math.fsum(task.centered for task in self.tasks) / len(self.tasks)

    @property
    def complete(self) -> bool:
        """Whether this is CORE, and not a part of it."""
        return len(self.tasks) == TASKS and self.max_problems is None

    @property
    def name(self) -> str:
        """CORE, or what of it this is."""
        return core_name(len(self.tasks), self.max_problems)

    def to_json(self) -> dict[str, Any]:
        """For reports; without the examples."""
        return {
            "core": self.core,
            "name": self.name,
            "complete": self.complete,
            "max_problems": self.max_problems,
            "missing": list(self.missing),
            "tasks": {
                task.label: {
                    **task.score.to_json(),
                    "baseline": task.baseline,
                    "centered": task.centered,
                    "seconds": task.seconds,
                }
                for task in self.tasks
            },
        }


def core_name(tasks: int, max_problems: int | None) -> str:
    """CORE, or what of it this is: no part of it compares with the whole."""
    of = [f"{tasks} of {TASKS} tasks"] if tasks != TASKS else []
    of += [f"at most {max_problems} examples a task"] if max_problems else []
    return f"CORE of {', '.join(of)}, not comparable" if of else "CORE"


def judge(kind: str, gold: int, losses: Sequence[float], greedy: bool) -> Judged:
    """The answer that losses mean.

    Like nanochat, the first of the smallest; a nan in the first place wins, elsewhere it loses.
    """
    if kind == "language_modeling":
        return Judged(0 if greedy else -1, 0, tuple(losses))
    return Judged(losses.index(min(losses)), gold, tuple(losses))
