"""Multiple choice from files, in nanochat's wording: MMLU and ARC.

The letter stands behind its option with nothing between (`=A`), where it is the same token as in
the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxchat.data.files.table import Row
from jaxchat.tasks.base import Problem, say
from jaxchat.tasks.dataset import FileProblems, said
from jaxchat.tokenizer.chat_format import Part

LETTERS = "ABCD"  # of MMLU


@dataclass(frozen=True)
class ChoiceProblem(Problem):
    """A problem whose answer is one of its letters."""

    letters: tuple[str, ...]


def wording(question: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """The user's message, word for word as in nanochat, so that scores are comparable."""
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
    ) -> ChoiceProblem:
        """The problem of a row with the field `question`."""
        if len(letters) != len(options):
            row.fail(f"has {len(options)} options and {len(letters)} letters")
        if answer not in letters:
            row.fail(f"has the answer {answer!r}, which is none of {', '.join(letters)}")
        conversation = say(wording(row.text("question"), letters, options), answer)
        return ChoiceProblem(self.name, key, conversation, answer, tuple(letters))

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the reply is the letter and nothing else."""
        return said(parts) == problem.answer


class MMLU(MultipleChoice):
    """MMLU (cais/mmlu): four options, 57 subjects; Hendrycks et al., 2021.

    The key is the subject and the question. `auxiliary_train`, which nanochat trains on, holds
    questions of other sets in the same form and without a subject: ARC, MC_TEST, OBQA and RACE.
    """

    name = "mmlu"
    columns = ("question", "subject", "choices", "answer")

    def read(self, row: Row) -> ChoiceProblem:
        options, number, subject = row.texts("choices"), row.number("answer"), row.text("subject")
        if len(options) != len(LETTERS):
            row.fail(f"has {len(options)} choices; it must have {len(LETTERS)}")
        if not 0 <= number < len(LETTERS):
            row.fail(f"has answer = {number}; it must be 0 to {len(LETTERS) - 1}")
        key = f"{subject}: {row.text('question')}"
        return self.problem(row, key, LETTERS, options, LETTERS[number])


class _ARC(MultipleChoice):
    """ARC (allenai/ai2_arc): grade-school science questions; Clark et al., 2018.

    Most have four options, some three or five; their letters are A to E or 1 to 5, as the data
    says. The key is the id.
    """

    columns = ("id", "question", "choices", "answerKey")

    def read(self, row: Row) -> ChoiceProblem:
        choices, key, answer = row.inner("choices"), row.text("id"), row.text("answerKey")
        return self.problem(row, key, choices.texts("label"), choices.texts("text"), answer)


class ARCEasy(_ARC):
    """ARC-Easy."""

    name = "arc_easy"


class ARCChallenge(_ARC):
    """ARC-Challenge: questions that retrieval and word co-occurrence answer wrongly."""

    name = "arc_challenge"
