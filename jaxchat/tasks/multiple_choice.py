"""Questions whose answer is a letter: MMLU and ARC in nanochat's wording.

The letter stands behind its option with nothing between (`=A`), where it is the same token as in
the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxchat.tasks.base import Problem, say
from jaxchat.tasks.dataset import FileProblems, said
from jaxchat.tasks.table import Row
from jaxchat.tokenizer.chat_format import Part


@dataclass(frozen=True)
class ChoiceProblem(Problem):
    """A problem whose answer is one of `letters`; `subject` groups problems, or is empty."""

    letters: tuple[str, ...]
    subject: str = ""


def wording(question: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """What the user asks, word for word as in nanochat, so that scores mean the same."""
    lines = [f"- {option}={letter}" for letter, option in zip(letters, options, strict=True)]
    return "\n".join(
        [
            f"Multiple Choice question: {question}",
            *lines,
            "",
            "Respond only with the letter of the correct answer.",
        ]
    )


class MultipleChoice(FileProblems):
    """Problems with options."""

    def problem(
        self,
        row: Row,
        key: str,
        letters: Sequence[str],
        options: Sequence[str],
        answer: str,
        subject: str = "",
    ) -> ChoiceProblem:
        """The problem of a row with the field `question`."""
        if len(letters) != len(options):
            row.fail(f"has {len(options)} options and {len(letters)} letters")
        if answer not in letters:
            row.fail(f"has the answer {answer!r}, which is none of {', '.join(letters)}")
        conversation = say(wording(row.text("question"), letters, options), answer)
        return ChoiceProblem(self.name, key, conversation, answer, tuple(letters), subject)

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the reply is the letter and nothing else."""
        return said(parts) == problem.answer
