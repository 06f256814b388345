"""Data sets: conversations by index, and for most of them a problem with its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from jaxchat.data.files.table import Row, Table
from jaxchat.errors import ArtifactError
from jaxchat.tasks.base import Problem, Split, Task
from jaxchat.tokenizer.chat_format import DELIMITERS, Conversation, Part


class Dataset(Protocol):
    """A fixed number of conversations, each the same whenever it is asked for."""

    name: str

    def __len__(self) -> int: ...

    def conversation(self, index: int) -> Conversation:
        """One conversation. Raises IndexError outside the data set."""
        ...


class FileData(ABC):
    """The rows of files; a subclass says which fields they have."""

    name: str
    columns: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()  # columns that are read where they are

    def __init__(self, paths: Iterable[Path]) -> None:
        """Opens the files of one split. Raises as `Table` does."""
        self.table = Table(paths, self.columns, self.optional)

    def __len__(self) -> int:
        return len(self.table)

    @abstractmethod
    def conversation(self, index: int) -> Conversation:
        """One conversation; RowError (naming file, row and field) for a bad row."""


class FileProblems(FileData):
    """Problems from files; a subclass reads a row."""

    def __getitem__(self, index: int) -> Problem:
        """A problem, in the order of the files.

        Raises IndexError outside, RowError (naming file, row and field) for a bad row.
        """
        return self.read(self.table[index])

    def conversation(self, index: int) -> Conversation:
        """A problem with its reference solution, as a conversation."""
        return self[index].conversation

    @abstractmethod
    def read(self, row: Row) -> Problem:
        """The problem of a row."""

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the parts of a completion solve the problem."""
        raise NotImplementedError(f"no text of {self.name} is right or wrong by itself")


@dataclass
class Selection:
    """Some conversations, in an order of their own, as a data set."""

    name: str
    numbers: range
    get: Callable[[int], Conversation]

    def __len__(self) -> int:
        return len(self.numbers)

    def conversation(self, index: int) -> Conversation:
        """One of them. Raises IndexError outside."""
        return self.get(self.numbers[index])


def drawn(task: Task, size: int, split: Split = "train", first: int = 0) -> Selection:
    """`size` problems of a split of a generated task, from index `first` on, as a data set."""
    numbers = range(first, first + size)
    return Selection(task.name, numbers, lambda index: task.problem(split, index).conversation)


ORDER_SEED = 42  # nanochat's, so that the first n problems are the ones it takes


class FixedTask:
    """Problem sets of two splits as a `Task`, shuffled; after the last the first comes again."""

    def __init__(self, train: FileProblems | None = None, test: FileProblems | None = None) -> None:
        self._splits = {"train": train, "test": test}
        one = test if test is not None else train
        if one is None:
            raise ValueError("a task needs problems of at least one split")
        self.name = one.name
        self._judge = one
        self._orders = {
            split: np.random.default_rng(ORDER_SEED).permutation(len(problems))
            for split, problems in self._splits.items()
            if problems is not None
        }

    def problem(self, split: Split, index: int) -> Problem:
        """See Task. Raises ArtifactError when there are no files of the split."""
        problems = self._splits[split]
        if problems is None or not len(problems):
            raise ArtifactError(f"there are no {split} problems of {self.name}; download them.")
        return problems[int(self._orders[split][index % len(problems)])]

    def size(self, split: Split) -> int:
        """Different problems of a split."""
        problems = self._splits[split]
        return 0 if problems is None else len(problems)

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        return self._judge.grade(problem, parts)


def said(parts: Iterable[Part]) -> str:
    """The text of all parts, with the delimiters of calls and outputs, as it was generated."""
    pieces = []
    for part in parts:
        start, end = DELIMITERS.get(part["type"], ("", ""))
        pieces += [start, part["text"], end]
    return "".join(pieces)
