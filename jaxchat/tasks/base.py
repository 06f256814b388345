"""Tasks: an endless, seeded supply of problems, split once and for all by their keys."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from jaxchat.tokenizer.chat_format import Conversation, Part

Split = Literal["train", "test"]

TEST_SHARE = 0.1  # of all keys
_EXHAUSTED = 2_000  # draws without a new key: the test split has no more


@dataclass(frozen=True)
class Problem:
    """One problem with its reference solution.

    The split is decided on the key, so what is held out never appears in training in other words.
    """

    task: str
    key: str  # identifies the problem, whatever its wording
    conversation: Conversation
    answer: str  # canonical

    @property
    def prompt(self) -> str:
        """The user's message."""
        content = self.conversation["messages"][0]["content"]
        assert isinstance(content, str)
        return content

    @property
    def solution(self) -> list[Part]:
        """The parts of the reference reply."""
        content = self.conversation["messages"][-1]["content"]
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Task(Protocol):
    """A supply of problems that grades answers to them."""

    name: str

    def problem(self, split: Split, index: int) -> Problem:
        """Problem `index` of a split: the same for the same seed, in any order, in any process."""
        ...

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the parts of a completion solve the problem. Exact match, no partial credit."""
        ...


def held_out(key: str, share: float = TEST_SHARE) -> bool:
    """Whether a key is among a share of all keys, by its hash: the test split, for any seed."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


class GeneratedTask(ABC):
    """A task that draws its problems at random; a subclass writes `draw`.

    Training problems are independent draws. Test problems have distinct keys until the test split
    is exhausted; after that they come round again.
    """

    name: str

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._tests: list[Problem] = []
        self._keys: set[str] = set()
        self._draws = 0
        self._exhausted = False

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """A problem of either split."""

    def is_test(self, key: str) -> bool:
        """The split of a key; a subclass may pin some keys to one side."""
        return held_out(key)

    def problem(self, split: Split, index: int) -> Problem:
        """See Task. Raises ValueError for another split's name or a negative index."""
        if index < 0:
            raise ValueError(f"a problem's index is 0 or more, not {index}")
        if split == "train":
            rng = self._rng(split, index)
            while self.is_test((problem := self.draw(rng)).key):
                pass
            return problem
        if split == "test":
            return self._test(index)
        raise ValueError(f"a split is 'train' or 'test', not {split!r}")

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the parts say what the reference says, after the same result of the same tool.

        What the tool was asked is free: 24 * 37 is as good a call as 37 * 24.
        """
        return _essence(parts) == _essence(problem.solution)

    def _rng(self, split: Split, index: int) -> random.Random:
        # seeded with a string, which random hashes itself: hash() differs between processes
        return random.Random(f"{self.name}/{self.seed}/{split}/{index}")

    def _test(self, index: int) -> Problem:
        """Grows the list of test problems, always in the same order, until it has `index`."""
        fruitless = 0
        while len(self._tests) <= index and not self._exhausted:
            problem = self.draw(self._rng("test", self._draws))
            self._draws += 1
            if problem.key not in self._keys and self.is_test(problem.key):
                self._keys.add(problem.key)
                self._tests.append(problem)
                fruitless = 0
            else:
                fruitless += 1
                self._exhausted = fruitless >= _EXHAUSTED
        if not self._tests:
            raise ValueError(f"task {self.name!r} has no held-out problem; give it more words")
        return self._tests[index % len(self._tests)]


def say(user: str, reply: str | list[Part]) -> Conversation:
    """A question answered by text, or by parts."""
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": reply},
        ]
    }


def say_with_tool(user: str, expression: str, output: str, reply: str) -> Conversation:
    """A question answered by one call of the calculator and a sentence."""
    parts: list[Part] = [
        {"type": "python", "text": expression},
        {"type": "python_output", "text": output},
        {"type": "text", "text": reply},
    ]
    return say(user, parts)


def _essence(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """What is graded: the kinds of parts in order, and every text but the tool's input."""
    return [(part["type"], "" if part["type"] == "python" else part["text"]) for part in parts]
