"""Problems and conversations: for training, evaluation and RL.

Here are the tasks whose problems the project's own seeded code generates. What comes out of files
is in `sources`, mixtures of both in `mixture`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from jaxchat.tasks.arithmetic import ArithmeticTask, TwoStepArithmeticTask
from jaxchat.tasks.base import Problem, Split, Task
from jaxchat.tasks.choice import ChoiceTask
from jaxchat.tasks.counting import CountingTask
from jaxchat.tasks.facts import FactTask
from jaxchat.tasks.identity import DEFAULT_PERSONA, IdentityTask, Persona
from jaxchat.tasks.repeat import RepeatTask
from jaxchat.tasks.spelling import EVERYDAY_WORDS, SpellingTask, WordTask, select_words

__all__ = ["EVERYDAY_WORDS", "TASKS", "Problem", "Split", "Task", "make_tasks", "select_words"]

TASKS: dict[str, Callable[..., Task]] = {
    task.name: task
    for task in (
        IdentityTask,
        ArithmeticTask,
        TwoStepArithmeticTask,
        SpellingTask,
        CountingTask,
        ChoiceTask,
        FactTask,
        RepeatTask,
    )
}


def make_tasks(
    names: Iterable[str],
    seed: int,
    words: Sequence[str] = (),
    *,
    always_train: Collection[str] = (),
    persona: Persona = DEFAULT_PERSONA,
) -> dict[str, Task]:
    """The named tasks, in the order of `names`.

    `words` and `always_train` are for the tasks on words, see `WordTask`; `persona` is for
    identity. Raises ValueError for an unknown name.
    """
    tasks: dict[str, Task] = {}
    for name in names:
        if name not in TASKS:
            raise ValueError(f"there is no task {name!r}; the tasks are {', '.join(TASKS)}")
        make = TASKS[name]
        if make is IdentityTask:
            tasks[name] = IdentityTask(seed, persona)
            continue
        on_words = isinstance(make, type) and issubclass(make, WordTask | RepeatTask)
        tasks[name] = make(seed, words, always_train=always_train) if on_words else make(seed)
    return tasks
