"""HumanEval (openai/openai_humaneval): 164 Python functions to complete; Chen et al., 2021."""

from __future__ import annotations

from dataclasses import dataclass

from jaxchat.data.files.table import Row
from jaxchat.tasks.base import Problem, say
from jaxchat.tasks.dataset import FileProblems


@dataclass(frozen=True)
class CodeProblem(Problem):
    """`prompt` is the head of a program; `answer` is the body that the authors wrote."""

    entry_point: str  # the name of what `check` is called with
    test: str  # defines the function `check`


class HumanEval(FileProblems):
    """The key is the task's id. There is no `grade`: programs run in the sandbox."""

    name = "humaneval"
    columns = ("task_id", "prompt", "canonical_solution", "test", "entry_point")

    def read(self, row: Row) -> CodeProblem:
        # the reference reply is the whole program
        prompt, body = row.text("prompt"), row.text("canonical_solution")
        conversation = say(prompt, f"{prompt}\n{body}")
        entry_point, test = row.text("entry_point"), row.text("test")
        return CodeProblem(self.name, row.text("task_id"), conversation, body, entry_point, test)
