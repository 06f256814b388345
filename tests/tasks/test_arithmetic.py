"""Arithmetic: right answers, held-out pairs, readable stories."""

import re
from collections.abc import Sequence
from hashlib import sha256

import pytest

from jaxchat.tasks.arithmetic import ArithmeticTask, SignArithmeticTask, TwoStepArithmeticTask
from jaxchat.tasks.base import Problem
from jaxchat.tokenizer.chat_format import Part, PartType
from jaxchat.tools.calculator import run_tool

DRAWS = 20_000
_NAME = "Ann|Ben|Tom|Sam|Mia|Max|Eva|Leo|Kim|Dan|Amy|Joe"


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    task = ArithmeticTask(0)
    return [task.problem("train", index).prompt for index in range(DRAWS)]


def test_37_times_24_is_always_held_out(prompts: list[str]) -> None:
    both = [text for text in prompts if set(re.findall(r"\d+", text)) == {"37", "24"}]
    assert not [text for text in both if re.search(r"\*|times|each|bag|days|tickets", text)]
    task = ArithmeticTask(0)
    assert task.is_test("24 * 37")


def questions_asked_with_signs(split: str = "train", number: int = 5_000) -> Sequence[Problem]:
    task = SignArithmeticTask(0)
    return [task.problem(split, index) for index in range(number)]  # type: ignore[arg-type]


def test_each_sign_is_asked_with_and_the_call_has_its_operator() -> None:
    operators = {"×": "*", "x": "*", "÷": "/", "−": "-"}
    seen = dict.fromkeys(operators, 0)
    for problem in questions_asked_with_signs():
        asked = re.search(r"(\d+)( ?)([×x÷−])\2(\d+)", problem.prompt)
        assert asked, problem.prompt
        a, _, sign, b = asked.groups()
        call, output, reply = (part["text"] for part in problem.solution)
        assert call == f"{a} {operators[sign]} {b}"
        assert output == problem.answer == run_tool(f"{a} {sign} {b}")
        assert reply == f"The answer is {output}."
        seen[sign] += 1
    assert min(seen.values()) > 1_000


def test_what_is_held_out_of_arithmetic_is_held_out_with_signs_too() -> None:
    plain, signs = ArithmeticTask(0), SignArithmeticTask(0)
    for problem in questions_asked_with_signs():
        assert not plain.is_test(problem.key)
    for problem in questions_asked_with_signs("test", 300):
        assert plain.is_test(problem.key)
    assert signs.is_test("24 * 37")


# Of commit bcdb543: models were trained on them.
TEXTS = {ArithmeticTask: "20a8ae4169e6cd88", TwoStepArithmeticTask: "57ce8ccc50eb257c"}


@pytest.mark.parametrize("make", TEXTS)
def test_questions_without_signs_are_as_they_were(
    make: type[ArithmeticTask] | type[TwoStepArithmeticTask],
) -> None:
    task, digest = make(0), sha256()
    for index in range(5_000):
        digest.update(repr(task.problem("train", index)).encode())
    for index in range(1_000):
        digest.update(repr(task.problem("test", index)).encode())
    assert digest.hexdigest().startswith(TEXTS[make])


def test_the_order_of_a_product_does_not_move_it_between_the_splits() -> None:
    task = ArithmeticTask(0)
    test = {task.problem("test", index).key for index in range(400)}
    for index in range(DRAWS):
        a, op, b = task.problem("train", index).solution[0]["text"].split()
        assert f"{a} {op} {b}" not in test
        if op in "+*":
            assert f"{b} {op} {a}" not in test


@pytest.mark.parametrize("make", [ArithmeticTask, TwoStepArithmeticTask])
def test_the_call_gives_the_answer_the_reply_states(
    make: type[ArithmeticTask] | type[TwoStepArithmeticTask],
) -> None:
    task = make(0)
    for index in range(2_000):
        problem = task.problem("train", index)
        call, output, reply = (part["text"] for part in problem.solution)
        assert str(eval(call)).removesuffix(".0") == output == problem.answer
        assert reply == f"The answer is {output}."


def test_the_call_has_the_numbers_of_the_question() -> None:
    for task in (ArithmeticTask(0), TwoStepArithmeticTask(0)):
        for index in range(3_000):
            problem = task.problem("train", index)
            asked = sorted(re.findall(r"\d+", problem.prompt))
            assert asked == sorted(re.findall(r"\d+", problem.solution[0]["text"]))


def test_numbers_have_one_or_two_digits_and_stories_no_singular(prompts: list[str]) -> None:
    for text in prompts:
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        assert len(numbers) == 2
        assert max(numbers) <= 99
        if not re.match(
            r"What is|How much is|Compute|Calculate|\d+ \S \d+( = \?)?$", text
        ):  # a story
            assert min(numbers) >= 2, text


def test_every_operation_and_wording_occurs(prompts: list[str]) -> None:
    shapes = {re.sub(r"\d+", "N", re.sub(_NAME, "X", text)) for text in prompts}
    assert len(shapes) > 60
    for wording in ("What is N plus N?", "N / N", "Compute N * N.", "How much is N - N?"):
        assert wording in shapes


def test_a_two_step_story_never_goes_below_nothing() -> None:
    task = TwoStepArithmeticTask(0)
    answers = [int(task.problem("train", index).answer) for index in range(5_000)]
    assert min(answers) >= 0


def test_another_call_with_the_same_result_is_right_and_a_wrong_result_is_not() -> None:
    task = ArithmeticTask(0)
    problem = next(p for i in range(99) if "*" in (p := task.problem("test", i)).key)
    a, _, b = problem.solution[0]["text"].split()

    def reply(call: str, answer: str) -> list[Part]:
        return [
            {"type": "python", "text": call},
            {"type": "python_output", "text": run_tool(call)},
            {"type": "text", "text": f"The answer is {answer}."},
        ]

    assert task.grade(problem, reply(f"{b} * {a}", problem.answer))
    assert not task.grade(problem, reply(f"{a} * {b} + 1", problem.answer))
    assert not task.grade(problem, reply(f"{a} * {b}", problem.answer + "0"))


def by_hand(*pieces: str) -> list[Part]:
    """Parts: `>` a call, `=` its output, else text."""
    kinds: dict[str, PartType] = {">": "python", "=": "python_output"}
    return [
        {"type": kinds.get(p[:1], "text"), "text": p[1:] if p[:1] in kinds else p} for p in pieces
    ]


@pytest.mark.parametrize(
    ("pieces", "right"),
    [
        ((">37 * 24", "=888", "The answer is 888."), True),
        ((">24*37", "=888", "The answer is 888."), True),  # what was asked is free
        ((">800 + 88", "=888", "The answer is 888."), True),
        ((">37 * 24", "=888", "The answer is 889."), False),
        ((">37 * 25", "=925", "The answer is 888."), False),
        ((">37 * 25", "=925", "The answer is 925."), False),
        ((">37 *", "=error: not an expression", "The answer is 888."), False),
        ((">37 * 24", "=888", "The answer is 888. "), False),
        ((">37 * 24", "=888", "888"), False),
        ((">37 * 24", "=888"), False),  # cut off
        ((">37 * 24",), False),
        (("The answer is 888.",), False),  # in its head
        ((">37 * 24", "=888", ">37 * 24", "=888", "The answer is 888."), False),
        ((), False),
    ],
)
def test_arithmetic_rewards_the_answer_after_the_calculators_result(
    pieces: tuple[str, ...], right: bool
) -> None:
    task = ArithmeticTask(seed=0)
    problem = task.solved("24 * 37", "What is 37 * 24?", "37 * 24")
    assert task.grade(problem, by_hand(*pieces)) is right
