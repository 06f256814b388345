"""MMLU (cais/mmlu): four options, 57 subjects; Hendrycks et al., 2021.

`auxiliary_train`, which nanochat trains on, holds questions of other sets in the same form and
without a subject: ARC, MC_TEST, OBQA and RACE.
"""

from __future__ import annotations

from jaxchat.tasks.multiple_choice import ChoiceProblem, MultipleChoice
from jaxchat.tasks.table import Row

LETTERS = "ABCD"


class MMLU(MultipleChoice):
    """The key is the subject and the question."""

    name = "mmlu"
    columns = ("question", "subject", "choices", "answer")

    def read(self, row: Row) -> ChoiceProblem:
        """The problem of a row."""
        options, number, subject = row.texts("choices"), row.number("answer"), row.text("subject")
        if len(options) != len(LETTERS):
            row.fail(f"has {len(options)} choices; it must have {len(LETTERS)}")
        if not 0 <= number < len(LETTERS):
            row.fail(f"has answer = {number}; it must be 0 to {len(LETTERS) - 1}")
        key = f"{subject}: {row.text('question')}"
        return self.problem(row, key, LETTERS, options, LETTERS[number], subject)
