"""Problems and conversations: for training, evaluation and RL.

Here are the registries: the tasks whose problems the project's own seeded code generates, and the
data sets that are read from files. Mixtures of both are in `mixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.errors import ConfigError
from jaxchat.tasks.arithmetic import ArithmeticTask, SignArithmeticTask, TwoStepArithmeticTask
from jaxchat.tasks.base import Problem, Split, Task
from jaxchat.tasks.conversations import Custom, SmolTalk
from jaxchat.tasks.dataset import Dataset
from jaxchat.tasks.facts import ChoiceTask, FactTask
from jaxchat.tasks.gsm8k import GSM8K
from jaxchat.tasks.humaneval import HumanEval
from jaxchat.tasks.identity import DEFAULT_PERSONA, IdentityTask, Persona
from jaxchat.tasks.multiple_choice import MMLU, ARCChallenge, ARCEasy
from jaxchat.tasks.words import (
    EVERYDAY_WORDS,
    CountingTask,
    RepeatTask,
    SpellingTask,
    WordTask,
    select_words,
)

__all__ = ["EVERYDAY_WORDS", "TASKS", "Problem", "Split", "Task", "make_tasks", "select_words"]

_GENERATED: tuple[type[Any], ...] = (  # differing constructors: `make_tasks` knows them
    IdentityTask,
    ArithmeticTask,
    TwoStepArithmeticTask,
    SignArithmeticTask,
    SpellingTask,
    CountingTask,
    ChoiceTask,
    FactTask,
    RepeatTask,
)
TASKS: Mapping[str, type[Any]] = {task.name: task for task in _GENERATED}

_FROM_FILES = (SmolTalk, MMLU, GSM8K, ARCEasy, ARCChallenge, HumanEval, Custom)
FILE_SOURCES: Mapping[str, Callable[[Iterable[Path]], Dataset]] = {
    source.name: source for source in _FROM_FILES
}


def make_tasks(
    names: Iterable[str],
    seed: int,
    words: Sequence[str] = (),
    *,
    always_train: Collection[str] = (),
    persona: Persona = DEFAULT_PERSONA,
) -> dict[str, Task]:
    """The named generated tasks, in the order of `names`.

    `words` and `always_train` are for the tasks on words, see `WordTask`; `persona` is for
    identity. Raises ValueError for an unknown name.
    """
    tasks: dict[str, Task] = {}
    for name in names:
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
        task = TASKS[name]
        if task is IdentityTask:
            tasks[name] = task(seed, persona)
        elif issubclass(task, WordTask):
            tasks[name] = task(seed, words, always_train=always_train)
        elif task is RepeatTask:
            tasks[name] = task(seed, words)
        else:
            tasks[name] = task(seed)
    return tasks


def open_source(name: str, paths: Iterable[Path]) -> Dataset:
    """The data set of a name, read from the files of one split.

    Raises ConfigError for an unknown name, and the errors of opening the files.
    """
    if name not in FILE_SOURCES:
        raise ConfigError(
            f"there is no source {name!r}; the sources are {', '.join(FILE_SOURCES)}."
        )
    return FILE_SOURCES[name](paths)
