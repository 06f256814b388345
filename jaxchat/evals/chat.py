"""Held-out problems, sampled through the engine or answered by letters; samples for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxchat.evals.letters import choose_letters
from jaxchat.evals.scores import Score, pass_rates
from jaxchat.inference.request import Completion, Request, cut_prompt
from jaxchat.inference.service import Service
from jaxchat.inference.transcript import as_text
from jaxchat.progress import Progress
from jaxchat.tasks import Problem, Task
from jaxchat.tasks.dataset import FixedTask
from jaxchat.tasks.humaneval import CodeProblem
from jaxchat.tasks.multiple_choice import ChoiceProblem
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part, parse_completion, render_prompt

COMPLETIONS = (
    "Return the number of",
    "The capital of Italy is",
    "def __init__(self,",
    "If the file does not exist,",
    "A list is a sequence of",
    "The opposite of small is",
)
QUESTIONS = (
    "Who are you?",
    "What can you do?",
    "What is 37 * 24?",
    "Ann has 12 apples, gets 30 more and loses 7. How many apples are left?",
    "How often does r occur in strawberry?",
    "Spell out the word strawberry.",
    "What is the capital of France?\nRome=A\nParis=B\nMadrid=C\nBerlin=D\nWhich one?",
)
MAX_TOKENS = 96


@dataclass(frozen=True)
class Sampling:
    """The sampling of answers: greedy, or `samples` times at a temperature.

    The keys of saved evaluations have its repr, so that a further field must stay out of it.
    """

    max_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0  # problem i is sampled with seed + i
    top_k: int = field(default=0, repr=False)  # drawn from the likeliest tokens, or from all (0)
    min_p: float = field(default=0.0, repr=False)
    repetition_penalty: float = field(default=1.0, repr=False)


def prompts_of(
    engine: Service, tokenizer: Tokenizer, problems: Sequence[Problem], max_tokens: int
) -> list[tuple[int, ...]]:
    """The ids of problems up to the assistant's answer; long ones are cut as by `cut_prompt`."""
    prompts = (render_prompt(p.conversation["messages"][:-1], tokenizer) for p in problems)
    size = {"max_tokens": max_tokens, "context": engine.max_len}
    return [cut_prompt(tuple(ids), bos=tokenizer.bos, **size) for ids in prompts]


def answer(
    engine: Service,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    title: str = "",
) -> list[list[Completion]]:
    """`sampling.samples` completions of every problem; a `title` shows progress."""
    requests = [
        Request(
            tokens=prompt, max_tokens=sampling.max_tokens, temperature=sampling.temperature,
            top_k=sampling.top_k, min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty, seed=sampling.seed + number,
            n=sampling.samples,
        )
        for number, prompt in enumerate(
            prompts_of(engine, tokenizer, problems, sampling.max_tokens)
        )
    ]  # fmt: skip
    if not title:
        return engine.generate(requests)
    with Progress(title, len(requests), "problem") as progress:
        return engine.generate(requests, progress=progress.update)


@dataclass(frozen=True)
class Result:
    """The result of one task."""

    score: Score  # right answers; of several samples, all of them count
    # k -> the chance that one of k samples is right
    pass_at: Mapping[int, float] = field(default_factory=dict)
    calls: int = 0  # of the calculator or of Python, in all samples
    failed_calls: int = 0  # those without a result

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        rates = {f"pass@{k}": value for k, value in self.pass_at.items()}
        calls = {"calls": self.calls, "failed_calls": self.failed_calls}
        return self.score.to_json() | calls | rates


# Runs programs: problems and the model's answer to each -> which of them pass.
CodeJudge = Callable[[Sequence[CodeProblem], Sequence[str]], list[bool]]


def evaluate_task(
    engine: Service,
    tokenizer: Tokenizer,
    task: Task,
    *,
    problems: int,
    sampling: Sampling,
    title: str,
    judge: CodeJudge | None = None,
) -> Result:
    """Held-out problems of a task: by letters where it is multiple choice, else sampled.

    `problems` is the most that are taken (0: all, of a dataset). Programs are run by `judge`.
    """
    chosen = _first_problems(task, problems)
    choices = [problem for problem in chosen if isinstance(problem, ChoiceProblem)]
    if choices:
        with Progress(title, len(choices), "problem") as progress:
            letters = choose_letters(
                engine.params, choices, tokenizer, engine.config, compute=engine.compute,
                progress=progress.update,
            )  # fmt: skip
        agreed = sum(p.answer == letter for p, letter in zip(choices, letters, strict=True))
        return Result(Score(agreed, len(choices)))
    said = _said(engine, tokenizer, chosen, sampling, title)
    right = [sum(group) for group in _judged(task, chosen, said, judge)]
    rates = pass_rates(right, sampling.samples)
    outputs = [p for group in said for parts in group for p in parts if p["type"] != "text"]
    calls = sum(part["type"] == "python" for part in outputs)
    given = sum(part["type"] == "python_output" and bool(part["text"]) for part in outputs)
    return Result(
        Score(sum(right), len(chosen) * sampling.samples),
        {k: rate for k, rate in rates.items() if k > 1},
        calls,
        calls - given,
    )


def held_out_problems(task: Task, problems: int) -> int:
    """The number of problems: `problems`, at most all of a dataset; 0 is all of one.

    Raises ValueError for 0 of a task that is generated without end.
    """
    size = task.size("test") if isinstance(task, FixedTask) else 0
    if not problems and not size:
        raise ValueError(f"{task.name} is generated without end; say how many problems.")
    return min(problems or size, size or problems)


def _judged(
    task: Task,
    problems: Sequence[Problem],
    said: Sequence[Sequence[Sequence[Part]]],
    judge: CodeJudge | None,
) -> list[list[bool]]:
    """Whether each sample of each problem is right."""
    if not isinstance(problems[0], CodeProblem):
        return [
            [task.grade(problem, parts) for parts in group]
            for problem, group in zip(problems, said, strict=True)
        ]
    if judge is None:
        raise ValueError(f"{task.name} has programs, and no judge to run them.")
    code = [problem for problem in problems if isinstance(problem, CodeProblem)]
    pairs = [(p, parts) for p, group in zip(code, said, strict=True) for parts in group]
    texts = [
        "".join(part["text"] for part in parts if part["type"] == "text") for _, parts in pairs
    ]
    flat = iter(judge([problem for problem, _ in pairs], texts))
    return [[next(flat) for _ in group] for group in said]


def by_letters(task: Task) -> bool:
    """Whether a task is multiple choice: its problems are answered by a letter."""
    return isinstance(task.problem("test", 0), ChoiceProblem)


def sampled_right(
    engine: Service,
    tokenizer: Tokenizer,
    task: Task,
    *,
    problems: int,
    sampling: Sampling,
    title: str = "",
) -> list[int]:
    """The number of samples that solve each of the first held-out problems, drawn as in RL."""
    chosen = _first_problems(task, problems)
    said = _said(engine, tokenizer, chosen, sampling, title)
    return [sum(group) for group in _judged(task, chosen, said, None)]


def _first_problems(task: Task, problems: int) -> list[Problem]:
    return [task.problem("test", index) for index in range(held_out_problems(task, problems))]


def _said(
    engine: Service,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: Sampling,
    title: str,
) -> list[list[list[Part]]]:
    """The parts of every completion of every problem."""
    groups = answer(engine, tokenizer, problems, sampling, title=title)
    return [[parse_completion(one.tokens, tokenizer) for one in group] for group in groups]


def sampler(stage: str) -> tuple[Callable[..., list[dict[str, Any]]], tuple[str, ...]]:
    """What samples a stage's model (engine, tokenizer, prompts), and the prompts."""
    return (text_samples, COMPLETIONS) if stage == "base" else (chat_samples, QUESTIONS)


def text_samples(
    engine: Service, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy continuations of text: `prompt` and `completion` each."""
    ids = [(tokenizer.bos, *tokenizer.encode(prompt)) for prompt in prompts]
    parts = _greedy(engine, tokenizer, ids)
    return [
        {"prompt": prompt, "completion": as_text(one)}
        for prompt, one in zip(prompts, parts, strict=True)
    ]


def chat_samples(
    engine: Service, tokenizer: Tokenizer, questions: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy answers to questions: `question` and the answer's `parts` each."""
    ids = [tuple(render_prompt([{"role": "user", "content": q}], tokenizer)) for q in questions]
    parts = _greedy(engine, tokenizer, ids)
    return [{"question": q, "parts": one} for q, one in zip(questions, parts, strict=True)]


def _greedy(
    engine: Service, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]]
) -> list[list[Part]]:
    requests = [Request(tokens=prompt, max_tokens=MAX_TOKENS) for prompt in prompts]
    return [parse_completion(one.tokens, tokenizer) for (one,) in engine.generate(requests)]
