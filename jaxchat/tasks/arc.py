"""ARC (allenai/ai2_arc): grade-school science questions, Easy and Challenge; Clark et al., 2018.

Most have four options, some three or five; their letters are A to E or 1 to 5, as the data says.
"""

from __future__ import annotations

from jaxchat.tasks.multiple_choice import ChoiceProblem, MultipleChoice
from jaxchat.tasks.table import Row


class _ARC(MultipleChoice):
    columns = ("id", "question", "choices", "answerKey")

    def read(self, row: Row) -> ChoiceProblem:
        """The problem of a row; the key is its id."""
        choices = row.inner("choices")
        return self.problem(
            row, row.text("id"), choices.texts("label"), choices.texts("text"),
            row.text("answerKey"),
        )  # fmt: skip


class ARCEasy(_ARC):
    """ARC-Easy."""

    name = "arc_easy"


class ARCChallenge(_ARC):
    """ARC-Challenge: what retrieval and co-occurrence of words get wrong."""

    name = "arc_challenge"
