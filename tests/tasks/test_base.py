"""What holds for every task: splits, determinism, grading of the reference."""

import itertools
import subprocess
import sys
from collections.abc import Sequence

import pytest

from jaxchat.tasks import TASKS, Problem, Task, make_tasks
from jaxchat.tasks.base import held_out
from jaxchat.tokenizer.chat_format import Part

_FIRST = "b c d f g h j k l m n p r s t v w ch sh st tr br gr pl cl fl sn"
_VOWELS = "a e i o u ai ea ee ie oa oo ou ay ow au ui ey oi ue"
_LAST = "bit den fer gle ket ler men ner pet ring son ter ton ver wick zen"
# some eight thousand pronounceable words, and a few real ones
WORDS = tuple(
    dict.fromkeys(
        ["banana", "window", "letter"]
        + [
            first + vowel + last
            for first in _FIRST.split()
            for vowel in _VOWELS.split()
            for last in _LAST.split()
        ]
    )
)
TRAIN_DRAWS = 10_000


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return make_tasks(TASKS, 0, WORDS)


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest, tasks: dict[str, Task]) -> Task:
    return tasks[request.param]


def test_no_held_out_key_is_ever_trained_on(task: Task) -> None:
    train = {task.problem("train", index).key for index in range(TRAIN_DRAWS)}
    test = {task.problem("test", index).key for index in range(400)}
    assert len(test) == 400, "the first 400 held-out problems are not distinct"
    assert not train & test


def test_no_held_out_prompt_is_ever_trained_on(task: Task) -> None:
    train = {task.problem("train", index).prompt.lower() for index in range(TRAIN_DRAWS)}
    test = {task.problem("test", index).prompt.lower() for index in range(400)}
    assert not train & test


@pytest.mark.parametrize("name", list(TASKS))
def test_the_split_of_a_key_does_not_depend_on_the_seed(name: str) -> None:
    here, there = (make_tasks([name], seed, WORDS)[name] for seed in (1, 2))
    train = {here.problem("train", index).key for index in range(3_000)}
    assert not train & {there.problem("test", index).key for index in range(400)}
    assert here.problem("train", 0) != there.problem("train", 0)


def test_problems_are_random_access(task: Task) -> None:
    fresh = make_tasks([task.name], 0, WORDS)[task.name]
    for index in (37, 5, 250, 5):
        assert fresh.problem("test", index) == task.problem("test", index)
        assert fresh.problem("train", index) == task.problem("train", index)


def test_problems_are_the_same_in_another_process(tasks: dict[str, Task]) -> None:
    words = WORDS[:300]
    code = (
        "from jaxchat.tasks import TASKS, make_tasks\n"
        f"for task in make_tasks(TASKS, 3, {words!r}).values():\n"
        "    print([task.problem(split, i) for split in ('train', 'test') for i in (0, 9)])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = [
        str([task.problem(split, index) for split in ("train", "test") for index in (0, 9)])
        for task in make_tasks(TASKS, 3, words).values()
    ]
    assert ran.stdout.splitlines() == mine


def test_the_reference_solution_passes_and_its_corruptions_fail(task: Task) -> None:
    for index in range(200):
        problem = task.problem("test", index)
        assert problem.task == task.name
        assert task.grade(problem, problem.solution)
        for wrong in corruptions(problem):
            assert not task.grade(problem, wrong), wrong


def corruptions(problem: Problem) -> list[Sequence[Part]]:
    solution = problem.solution
    last = solution[-1]["text"]
    said: list[Part] = [{"type": "text", "text": text} for text in (last + " ", last[:-1], "")]
    wrong: list[Sequence[Part]] = [[], [*solution, said[0]], solution[:-1]]
    wrong += [[*solution[:-1], part] for part in said]
    if len(solution) == 3:
        wrong += [solution[2:], [solution[0], solution[2]]]  # no call, no result
        wrong += [[solution[0], {"type": "python_output", "text": "error: x"}, solution[2]]]
    else:
        wrong += [[{"type": "python", "text": last}]]
    return wrong


def test_another_problems_answer_fails(task: Task) -> None:
    problems = [task.problem("test", index) for index in range(100)]
    for one, other in itertools.pairwise(problems):
        same = one.solution[-1] == other.solution[-1] and one.answer == other.answer
        assert task.grade(one, other.solution) == same


def test_about_a_tenth_of_the_keys_is_held_out() -> None:
    share = sum(held_out(f"key {number}") for number in range(20_000)) / 20_000
    assert 0.09 < share < 0.11


def test_the_split_of_known_keys_stays_what_it_was() -> None:
    # if you meant to change the split: models trained before it have seen what is now held out
    assert [key for key in map(str, range(40)) if held_out(key)] == GOLDEN


GOLDEN = ["9", "39"]


def test_the_test_split_comes_round_again_when_it_is_exhausted() -> None:
    task = make_tasks(["spelling"], 0, WORDS[:60])["spelling"]
    keys = [task.problem("test", index).key for index in range(300)]
    count = len(set(keys))
    assert 1 < count < 30
    assert keys[:count] == keys[count : 2 * count]


def test_prompts_render_and_are_short(task: Task) -> None:
    problems = [task.problem("train", index) for index in range(300)]
    assert max(len(problem.prompt) for problem in problems) < 160
    assert len({problem.prompt for problem in problems}) > 100, "too little variety"


def test_bad_requests_are_explained(task: Task) -> None:
    with pytest.raises(ValueError, match="0 or more, not -1"):
        task.problem("train", -1)
    with pytest.raises(ValueError, match="'train' or 'test', not 'dev'"):
        task.problem("dev", 0)  # type: ignore[arg-type]


def test_an_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no task 'maths'; the tasks are identity, arithmetic"):
        make_tasks(["maths"], 0)
