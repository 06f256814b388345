"""HumanEval: whether the program that a model wrote passes its tests (Chen et al., 2021).

The program of an answer (`answers`) and the tests run in two programs, each sandboxed on its own
(`tools.sandbox`), and the tests call the answer's functions across a pipe (`tools.remote`). An
answer therefore passes only by giving the right values: not by leaving with exit code 0, nor by
replacing what the tests use. It is imported, not started: what it has under
`if __name__ == "__main__":` does not run, as in the code beside the paper.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxchat.config.machine import cores
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.answers import program_of
from jaxchat.progress import Progress
from jaxchat.tasks.humaneval import CodeProblem
from jaxchat.tools.sandbox import levels, remote, run
from jaxchat.tools.sandbox.process import Program
from jaxchat.tools.sandbox.run import run_program

TIMEOUT = 10.0  # seconds of each of the two programs


@dataclass(frozen=True)
class Verdict:
    """Whether an answer passed; if not, why, in a sentence."""

    passed: bool
    reason: str


def imports_of(prompt: str) -> str:
    """The imports at the head of a prompt, up to the first other line of code."""
    lines = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)


def _run(problem: CodeProblem, answer: str, unsafe: bool) -> Verdict:
    """Runs the program of an answer beside its tests."""
    tests = f"{imports_of(problem.prompt)}\n\n{problem.test}\n"
    calls, answers = os.pipe(), os.pipe()
    program_job = Program(
        answer, timeout=TIMEOUT, role=remote.SERVE, channel=(calls[0], answers[1])
    )
    tests_job = Program(
        tests, timeout=TIMEOUT, role=f"{remote.TEST}{problem.entry_point}",
        channel=(answers[0], calls[1]),
    )  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        program = pool.submit(run_program, program_job, unsafe=unsafe)
        outcome = run_program(tests_job, unsafe=unsafe)
        return _verdict(program.result(), outcome)


def _verdict(program: run.Outcome, tests: run.Outcome) -> Verdict:
    for outcome in (program, tests):
        if outcome.status == "refused":
            raise ArtifactError(f"a program of HumanEval was not run: {outcome.reason}")
    if tests.status == "ok":  # the program's own end proves nothing: it can claim anything
        return Verdict(True, "")
    failed = program if program.status != "ok" else tests
    return Verdict(False, failed.reason or "it failed its tests")


def grade_many(
    answers: Sequence[tuple[CodeProblem, str]], *, unsafe: bool = False
) -> Iterator[Verdict]:
    """Runs answers against the tests of their problems, as many at a time as there are cores.

    Each answer is what the model said, with any text around the program. The verdicts come in
    order, and progress is shown. `unsafe` runs programs even where they cannot be sandboxed.

    Raises ArtifactError where one suddenly could not be: that is no wrong answer.
    """
    with (
        concurrent.futures.ThreadPoolExecutor(cores()) as pool,
        Progress("humaneval", len(answers), "program") as progress,
    ):
        # Programs are found here and not in the pool: parsing sets the filters of warnings.
        programs = [program_of(said, one.prompt, one.entry_point) for one, said in answers]
        waiting = [
            pool.submit(_run, one, program, unsafe)
            for (one, _), program in zip(answers, programs, strict=True)
        ]
        try:
            for done, future in enumerate(waiting, 1):
                yield future.result()
                progress.update(done)
        finally:
            pool.shutdown(cancel_futures=True)


def judge(unsafe: bool = False) -> Callable[[Sequence[CodeProblem], Sequence[str]], list[bool]]:
    """The judge that `evals.chat.evaluate_task` takes: whether each of many answers passes.

    Raises ConfigError where no program of a model may be run.
    """
    if not unsafe and levels.detect().name == "none":
        raise ConfigError(
            "HumanEval runs programs that a model wrote, and this machine cannot sandbox "
            "them (jaxchat doctor says what is missing); leave humaneval out, or pass --unsafe-exec"
        )

    def passed(problems: Sequence[CodeProblem], answers: Sequence[str]) -> list[bool]:
        pairs = list(zip(problems, answers, strict=True))
        return [verdict.passed for verdict in grade_many(pairs, unsafe=unsafe)]

    return passed
