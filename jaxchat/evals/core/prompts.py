"""What a model reads of an example: solved examples, the question, and its possible ends.

The texts and the solved examples drawn are nanochat's, character by character.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from jaxchat.evals.core.bundle import CoreTask, Example

SHOT_SEED = 1234  # nanochat's: example i draws with this + i
BETWEEN = "\n\n"  # solved examples


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
