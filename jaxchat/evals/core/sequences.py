"""Prompts as tokens: which of them are scored, and what the prompts of an example share.

A `Row` is a trunk of tokens and branches that go on from it, each for itself: a question and its
choices. The trunk is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jaxchat.errors import ArtifactError
from jaxchat.evals.core.bundle import CoreTask, Example, Kind
from jaxchat.evals.core.prompts import draw_shots, prompts
from jaxchat.tokenizer.bpe import Tokenizer

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Choice:
    """The tokens of one prompt; those from `start` on are scored."""

    tokens: Ids
    start: int


@dataclass(frozen=True)
class Row:
    """Choices of one example that share what is before them.

    Attributes:
        example: its number.
        choices: their numbers, one a branch.
        trunk: at least one token.
        branches: the tokens behind the trunk, of each choice.
        starts: how many tokens of each branch are not scored.
    """

    example: int
    choices: tuple[int, ...]
    trunk: Ids
    branches: tuple[Ids, ...]
    starts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens of all branches."""
        return sum(map(len, self.branches))

    @property
    def scored(self) -> list[int]:
        """How many tokens of each branch are scored."""
        return [len(b) - start for b, start in zip(self.branches, self.starts, strict=True)]


def task_rows(
    task: CoreTask, examples: Sequence[Example], tokenizer: Tokenizer, context: int
) -> list[Row]:
    """The rows of all examples, in their order. Prompts lose their first tokens over `context`."""
    texts = [
        prompts(task, example, draw_shots(examples, index, task.shots))
        for index, example in enumerate(examples)
    ]
    ids, offsets = tokenizer.encode_batch(itertools.chain(*texts), prepend="<|bos|>")
    places = iter(itertools.pairwise(offsets.tolist()))
    rows: list[Row] = []
    for index, group in enumerate(texts):
        tokens = [ids[start:stop] for start, stop in itertools.islice(places, len(group))]
        choices = find_scored(task.kind, tokens)
        if task.kind == "language_modeling" and choices[0].start >= len(choices[0].tokens):
            raise ArtifactError(
                f"example {index} of {task.label} has no continuation to predict: "
                f"{examples[index]['continuation']!r}; mend or remove it in {task.path}."
            )
        rows += split_rows(index, choices, context)
    return rows


def find_scored(kind: Kind, tokens: Sequence[Ids]) -> list[Choice]:
    """Where the scored part begins: where choices first differ, or where they agree to their end.

    Language modelling has the prompt without and with its continuation: one choice, scored from
    where the former ends. Should a tokenizer join the two, from where they differ.
    """
    if kind == "schema":
        common = _common([t[::-1] for t in tokens])
        return [Choice(t, len(t) - common) for t in tokens]
    common = _common(tokens)
    if kind == "multiple_choice":
        return [Choice(t, common) for t in tokens]
    return [Choice(tokens[1], common)]


def _common(tokens: Sequence[Ids]) -> int:
    """The length of what all begin with."""
    size = min(map(len, tokens))
    same = np.ones(size, bool)
    for other in tokens[1:]:
        same &= tokens[0][:size] == other[:size]
    return size if same.all() else int(np.argmin(same))


def split_rows(example: int, choices: Sequence[Choice], context: int) -> Iterator[Row]:
    """The rows of an example: one, unless truncation leaves its choices nothing in common.

    Choices that lose different numbers of tokens see different things from their first one on.
    What is scored does not become longer than `context - 1`: the first token has nothing before.
    """
    cut: dict[int, list[tuple[int, Choice]]] = {}
    for number, choice in enumerate(choices):
        lost = max(0, len(choice.tokens) - context)
        short = Choice(choice.tokens[lost:], max(1, choice.start - lost))
        cut.setdefault(lost, []).append((number, short))
    for group in cut.values():
        trunk = min(_common([c.tokens for _, c in group]), min(c.start for _, c in group))
        parts = [group] if trunk else [[one] for one in group]
        for part in parts:
            yield _row(example, part, trunk or part[0][1].start)


def _row(example: int, part: Sequence[tuple[int, Choice]], trunk: int) -> Row:
    return Row(
        example,
        tuple(number for number, _ in part),
        part[0][1].tokens[:trunk],
        tuple(choice.tokens[trunk:] for _, choice in part),
        tuple(choice.start - trunk for _, choice in part),
    )
