"""Prompts of an example: its texts, their tokens, which of them are scored, and what they share.

The texts and the solved examples drawn are nanochat's, character by character. A `Row` is a trunk
of tokens and branches that continue it, each on its own: a question and its choices. The trunk is
computed once.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jaxchat.errors import ArtifactError
from jaxchat.evals.core.bundle import CoreTask, Example, Kind
from jaxchat.tokenizer.bpe import Tokenizer

SHOT_SEED = 1234  # nanochat's: example i draws with this + i
BETWEEN = "\n\n"  # solved examples
Ids = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Choice:
    """The tokens of one prompt; those from `start` on are scored."""

    tokens: Ids
    start: int


@dataclass(frozen=True)
class Row:
    """Choices of one example that share what is before them."""

    example: int  # its number
    choices: tuple[int, ...]  # their numbers, one a branch
    trunk: Ids  # at least one token
    branches: tuple[Ids, ...]  # the tokens behind the trunk, of each choice
    starts: tuple[int, ...]  # tokens of each branch that are not scored

    @property
    def size(self) -> int:
        """Tokens of all branches."""
        return sum(map(len, self.branches))

    @property
    def scored(self) -> list[int]:
        """The number of tokens of each branch that are scored."""
        return [len(b) - start for b, start in zip(self.branches, self.starts, strict=True)]


def draw_shots(examples: Sequence[Example], index: int, count: int) -> list[Example]:
    """`count` examples other than number `index`, the same for every model and number of tasks."""
    if not count:
        return []
    others = [number for number in range(len(examples)) if number != index]
    return [examples[n] for n in random.Random(SHOT_SEED + index).sample(others, count)]


def prompts(task: CoreTask, example: Example, shots: Sequence[Example]) -> list[str]:
    """The texts to compare: one a choice, or for language modelling without and with its end."""
    solved = "".join(
        question + task.delimiter + answer + BETWEEN
        for question, answer in (_solved(task, shot) for shot in shots)
    )
    if task.kind == "multiple_choice":
        question = solved + example["query"] + task.delimiter
        return [question + str(choice) for choice in example["choices"]]
    if task.kind == "schema":
        end = task.delimiter + example["continuation"]
        return [solved + str(context) + end for context in example["context_options"]]
    question = solved + example["context"].strip() + task.delimiter
    # Without the space at its end, which the first word of the continuation takes into its token.
    return [question.strip(), question + example["continuation"]]


def _solved(task: CoreTask, shot: Example) -> tuple[str, str]:
    if task.kind == "multiple_choice":
        return shot["query"], str(shot["choices"][shot["gold"]])
    if task.kind == "schema":
        return str(shot["context_options"][shot["gold"]]), shot["continuation"]
    return shot["context"].strip(), shot["continuation"]


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
    """The start of the scored part: where choices first differ, or where they agree to their end.

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
