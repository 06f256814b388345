"""The chat sources: what they make of a row, how they judge a reply, what they say of a bad row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_files import (
    ARC_ROWS,
    CHATS,
    GSM8K_ROWS,
    HUMANEVAL_ROWS,
    MMLU_ROWS,
    jsonl,
    parquet,
)

from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.tasks import FILE_SOURCES, make_tasks, open_source
from jaxchat.tasks.conversations import SmolTalk
from jaxchat.tasks.dataset import FixedTask, drawn
from jaxchat.tasks.gsm8k import GSM8K, final_number, parse_solution
from jaxchat.tasks.humaneval import HumanEval
from jaxchat.tasks.multiple_choice import MMLU, ARCChallenge, ARCEasy
from jaxchat.tokenizer.chat_format import Part

ROWS: dict[str, list[dict[str, Any]]] = {
    "smoltalk": CHATS,
    "custom": CHATS,
    "mmlu": MMLU_ROWS,
    "arc_easy": ARC_ROWS,
    "arc_challenge": ARC_ROWS,
    "gsm8k": GSM8K_ROWS,
    "humaneval": HUMANEVAL_ROWS,
}


def text(content: str) -> Part:
    return {"type": "text", "text": content}


def call(code: str) -> Part:
    return {"type": "python", "text": code}


def output(result: str) -> Part:
    return {"type": "python_output", "text": result}


@pytest.mark.parametrize("name", list(FILE_SOURCES))
def test_parquet_and_json_lines_give_the_same_conversations(tmp_path: Path, name: str) -> None:
    rows = ROWS[name]
    ours = open_source(name, [parquet(tmp_path / "a.parquet", rows)])
    theirs = open_source(name, [jsonl(tmp_path / "a.jsonl", rows)])
    assert ours.name == name
    assert len(ours) == len(theirs) == len(rows)
    for index in reversed(range(len(rows))):
        assert ours.conversation(index) == theirs.conversation(index)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ConfigError, match="no source 'squad'; the sources are smoltalk, mmlu"):
        open_source("squad", [])


def test_smoltalk_keeps_the_system_message(tmp_path: Path) -> None:
    chats = SmolTalk([parquet(tmp_path / "a.parquet", CHATS)])
    assert [chats.conversation(index) for index in range(len(chats))] == CHATS


def test_gsm8k_calls_the_calculator(tmp_path: Path) -> None:
    problem = GSM8K([jsonl(tmp_path / "a.jsonl", GSM8K_ROWS)])[1]
    assert problem.prompt == GSM8K_ROWS[1]["question"] == problem.key
    assert problem.answer == "1250"
    assert problem.solution == [
        call("2*1250"),
        output("2500"),
        text("2500 come.\nHalf of 2500 is "),
        call("2500/2"),
        output("1250"),
        text("1250.\n#### 1,250"),
    ]


@pytest.mark.parametrize(
    ("solution", "parts"),
    [
        ("#### 1", [text("#### 1")]),
        ("<<3>>3", [call("3"), output(""), text("3")]),
        ("<<1+1=2=2>>2", [call("1+1=2"), output("2"), text("2")]),
        ("a <<>> b", [text("a <<>> b")]),
        ("<<1+1=2", [text("<<1+1=2")]),
        ("<<1=1>><<2=2>>", [call("1"), output("1"), call("2"), output("2")]),
        ("x < 3 << 4", [text("x < 3 << 4")]),
    ],
)
def test_calls_in_a_solution(solution: str, parts: list[Part]) -> None:
    assert parse_solution(solution) == parts


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("#### 72", "72"),
        ("so\n#### -1,234.50 dollars", "-1234.50"),
        ("#### 1\n#### 2", "1"),
        ("####72", None),
        ("#### $72", None),
        ("### 72", None),
        ("#### ٣", None),
        ("", None),
    ],
)
def test_the_number_behind_four_hashes(said: str, number: str | None) -> None:
    assert final_number(said) == number


@pytest.mark.parametrize(
    ("parts", "right"),
    [
        ([text("Half are left.\n#### 1250")], True),
        ([text("#### 1,250")], True),
        ([call("2500/2"), output("1250"), text("1250 are left.\n#### 1250")], True),
        ([text("#### 1250.0")], False),
        ([text("1250")], False),
        ([text("#### 12"), text("50")], True),  # the same text
        ([text("#### "), call("1250"), output("1250"), text("1250")], False),  # not the same text
        ([text("#### 7\n#### 1250")], False),
        ([], False),
    ],
)
def test_gsm8k_grades_the_first_final_number(
    tmp_path: Path, parts: list[Part], right: bool
) -> None:
    problems = GSM8K([jsonl(tmp_path / "a.jsonl", GSM8K_ROWS)])
    assert problems.grade(problems[1], parts) is right
    assert all(problems.grade(problem, problem.solution) for problem in problems)


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("So she has 18.\n#### 18", "18", True),
        ("#### 18 dollars", "18", True),  # what follows the number does not count
        ("#### 18\nWait, no.\n#### 20", "18", True),  # the first counts
        ("#### 20\nWait, no.\n#### 18", "18", False),
        ("#### 70,000", "70000", True),
        ("#### 7,0,000", "70000", True),
        ("#### -3", "-3", True),
        ("#### 3", "-3", False),
        ("#### - 3", "-3", False),
        ("#### 2.50", "2.50", True),
        ("#### 2.5", "2.50", False),  # text is compared
        ("#### $18", "18", False),  # no number follows; the answers have none either
        ("#### 18.", "18", False),
        ("####18", "18", False),
        ("### 18", "18", False),
        ("#### eighteen\n#### 18", "18", True),  # the first that a number follows
        ("#### 1\u0668", "18", False),  # digits of other scripts end a number
        ("The answer is 18.", "18", False),
        ("", "18", False),
    ],
)
def test_gsm8k_rewards_what_it_evaluates(
    tmp_path: Path, said: str, answer: str, right: bool
) -> None:
    """As nanochat and the code beside the paper grade, on completions written by hand."""
    task = GSM8K([jsonl(tmp_path / "a.jsonl", GSM8K_ROWS)])
    problem = replace(task[0], answer=answer)
    assert task.grade(problem, [text(said)]) is right
    with_tool = [text("It is "), call("2*9"), output("18"), text("18.\n"), text(said)]
    assert task.grade(problem, with_tool) is right


def test_multiple_choice_is_worded_with_the_letter_behind_the_option(tmp_path: Path) -> None:
    problem = MMLU([parquet(tmp_path / "a.parquet", MMLU_ROWS)])[1]
    assert problem.prompt == (
        "Multiple Choice question: Which is odd?\n- 2=A\n- 4=B\n- 6=C\n- 7=D\n\n"
        "Respond only with the letter of the correct answer."
    )
    assert problem.solution == [text("D")]
    assert (problem.answer, problem.letters) == ("D", tuple("ABCD"))


def test_mmlu_reads_rows_within_a_column_called_train(tmp_path: Path) -> None:
    """cais/mmlu's configuration auxiliary_train has them so."""
    wrapped = parquet(tmp_path / "a.parquet", [{"train": row} for row in MMLU_ROWS])
    plain = parquet(tmp_path / "b.parquet", MMLU_ROWS)
    assert list(MMLU([wrapped])) == list(MMLU([plain]))


@pytest.mark.parametrize("source", [ARCEasy, ARCChallenge])
def test_arc_takes_letters_and_their_number_from_the_data(tmp_path: Path, source: Any) -> None:
    problems = source([parquet(tmp_path / "a.parquet", ARC_ROWS)])
    assert [(p.letters, p.answer, p.key) for p in problems] == [
        (("A", "B", "C"), "B", "A_1"),
        (("1", "2", "3", "4", "5"), "5", "A_2"),
    ]
    assert "- fire=5\n" in problems[1].prompt
    assert problems.grade(problems[1], [text("5")])
    assert not problems.grade(problems[1], [text("5.")])
    assert not problems.grade(problems[1], [text("4")])


def test_humaneval_keeps_what_judging_needs(tmp_path: Path) -> None:
    problem = HumanEval([jsonl(tmp_path / "a.jsonl.gz", HUMANEVAL_ROWS)])[0]
    names: dict[str, Any] = {}
    exec(problem.prompt + problem.answer + problem.test, names)
    names["check"](names[problem.entry_point])
    assert problem.solution == [text(problem.prompt + "\n" + problem.answer)]
    assert problem.key == "HumanEval/0"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gsm8k", {"answer": "no number"}, "does not end with"),
        ("gsm8k", {"question": None}, "has a question of type null"),
        ("mmlu", {"choices": ["1", "2"]}, "has 2 choices"),
        ("mmlu", {"answer": 4}, "has answer = 4"),
        ("mmlu", {"answer": "A"}, "has answer = 'A'"),
        ("arc_easy", {"answerKey": "F"}, "has the answer 'F', which is none of A, B, C"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["A", "B"]}}, "1 options and 2 letters"),
        ("arc_easy", {"choices": {"text": ["a"]}}, ", in choices, has no field 'label'"),
        ("humaneval", {"test": 1}, "has a test of type int"),
        ("smoltalk", {"messages": []}, "is no conversation: messages must be a list"),
        (
            "smoltalk",
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
            "is no conversation: messages[1].role is 'user'",
        ),
        ("smoltalk", {"messages": [{"role": "user", "content": "a"}]}, "no reply"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_field(
    tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    good = ROWS[name][0]
    source = open_source(name, [jsonl(tmp_path / "a.jsonl", [good, {**good, **change}])])
    source.conversation(0)
    with pytest.raises(ArtifactError) as caught:
        source.conversation(1)
    assert str(caught.value).startswith(f"line 2 of {tmp_path / 'a.jsonl'}")
    assert said in str(caught.value)


def test_problems_of_files_are_a_task_that_comes_round_again(tmp_path: Path) -> None:
    problems = GSM8K([jsonl(tmp_path / "a.jsonl", GSM8K_ROWS)])
    task = FixedTask(test=problems)
    assert (task.name, task.size("test"), task.size("train")) == ("gsm8k", 2, 0)
    order = np.random.default_rng(42).permutation(2)  # nanochat's
    assert [task.problem("test", n) for n in (0, 1, 2)] == [
        problems[int(order[n % 2])] for n in (0, 1, 2)
    ]
    assert task.grade(problems[0], [text("#### 36")])
    with pytest.raises(ArtifactError, match="no train problems of gsm8k"):
        task.problem("train", 0)


def test_generated_problems_are_a_data_set_of_a_given_size() -> None:
    task = make_tasks(["arithmetic"], 0)["arithmetic"]
    problems = drawn(task, 5, "train", first=100)
    assert len(problems) == 5
    assert problems.conversation(4) == task.problem("train", 104).conversation
    assert problems.conversation(0) == task.problem("train", 100).conversation
    with pytest.raises(IndexError):
        problems.conversation(5)
