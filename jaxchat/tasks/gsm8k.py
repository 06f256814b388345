"""GSM8K (openai/gsm8k, main): grade-school word problems solved with a calculator.

Cobbe et al., 2021. An answer has calls of the calculator between double angle brackets, with what
it gives: `4 / 2 = <<4/2=2>>2`, and ends with the line `#### 2`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxchat.data.files.table import Row
from jaxchat.tasks.base import Problem, say
from jaxchat.tasks.dataset import FileProblems, said
from jaxchat.tokenizer.chat_format import Part

_CALL = re.compile(r"<<([^>]+)>>")
_FINAL = re.compile(r"#### (-?[0-9.,]+)", re.ASCII)


class GSM8K(FileProblems):
    """Problems whose reference reply calls the calculator. The key is the question."""

    name = "gsm8k"
    columns = ("question", "answer")

    def read(self, row: Row) -> Problem:
        question, solution = row.text("question"), row.text("answer")
        parts = parse_solution(solution)
        answer = final_number(said(parts[-1:]))
        if answer is None:
            row.fail('has an answer that does not end with "#### " and a number')
        return Problem(self.name, question, say(question, parts), answer)

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        """Whether the number after the first "####" is the answer, commas aside.

        The comparison is of text, as in nanochat and in the code beside the paper: 2.0 is not 2.
        """
        return final_number(said(parts)) == problem.answer


def parse_solution(solution: str) -> list[Part]:
    """Text, and for each `<<4/2=2>>` the call `4/2` and its output `2`.

    A call without "=" has no output; with several, the output follows the last. The text behind a
    call repeats its output, and stays.
    """
    parts: list[Part] = []
    for number, piece in enumerate(_CALL.split(solution)):
        if number % 2 == 0:
            if piece:
                parts.append({"type": "text", "text": piece})
            continue
        call, equals, output = piece.rpartition("=")
        parts.append({"type": "python", "text": call if equals else piece})
        parts.append({"type": "python_output", "text": output if equals else ""})
    return parts


def final_number(text: str) -> str | None:
    """The number after the first "#### ", without commas; None when there is none."""
    match = _FINAL.search(text)
    return match and match.group(1).replace(",", "")
