"""The tables of facts, and choosing among them."""

from collections import Counter

import pytest

from jaxchat.tasks.facts import LETTERS, TABLES, ChoiceTask, FactTask, Table


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_subject_has_one_answer_and_every_table_enough(table: Table) -> None:
    subjects = [subject for subject, _ in table.facts]
    assert len(subjects) == len(set(subjects))
    assert len(table.answers) >= 7
    assert all(answer.isalpha() for answer in table.answers)
    for wording in table.questions:
        assert wording.count("{}") == 1


def test_no_question_is_asked_in_two_tables() -> None:
    questions = [
        wording.format(subject)
        for table in TABLES
        for wording in table.questions
        for subject, _ in table.facts
    ]
    assert len(questions) == len(set(questions))


def test_there_are_150_to_250_facts() -> None:
    assert 150 <= sum(len(table.facts) for table in TABLES) <= 250


def test_the_letter_is_that_of_the_right_answer_and_of_no_other() -> None:
    answers = {
        wording.format(subject): answer
        for table in TABLES
        for wording in table.questions
        for subject, answer in table.facts
    }
    task = ChoiceTask(0)
    letters: Counter[str] = Counter()
    for index in range(4_000):
        problem = task.problem("train", index)
        wording, *lines, _ = problem.prompt.split("\n")
        letter_of = dict(line.split("=") for line in lines)
        assert list(letter_of.values()) == list(LETTERS)
        assert len(letter_of) == len(LETTERS)
        right = answers[wording]
        assert letter_of[right] == problem.answer
        assert problem.solution == [{"type": "text", "text": f"{right}={problem.answer}"}]
        letters[problem.answer] += 1
    assert min(letters.values()) > 900, letters


def test_a_held_out_set_of_options_never_appears_in_training_in_any_order_or_wording() -> None:
    task = ChoiceTask(0)

    def identity(prompt: str) -> tuple[str, frozenset[str]]:
        wording, *lines, _ = prompt.split("\n")
        subject = next(
            f"{table.name}/{subject}"
            for table in TABLES
            for subject, _ in table.facts
            if wording in [one.format(subject) for one in table.questions]
        )
        return subject, frozenset(line.partition("=")[0] for line in lines)

    test = {identity(task.problem("test", index).prompt) for index in range(400)}
    assert len(test) == 400
    train = {identity(task.problem("train", index).prompt) for index in range(10_000)}
    assert not test & train


def test_every_fact_and_every_bare_question_can_be_trained_on() -> None:
    task = FactTask(0)
    asked = {task.problem("train", index).prompt for index in range(30_000)}
    for table in TABLES:
        for subject, _ in table.facts:
            assert table.questions[0].format(subject) in asked


def test_a_fact_is_answered_in_one_word_written_as_among_the_options() -> None:
    task = FactTask(0)
    answers = {answer for table in TABLES for answer in table.answers}
    for index in range(500):
        problem = task.problem("train", index)
        assert problem.solution == [{"type": "text", "text": f"{problem.answer}."}]
        assert problem.answer in answers


def test_the_right_option_with_a_wrong_letter_and_the_letter_alone_both_fail() -> None:
    task = ChoiceTask(0)
    problem = task.problem("test", 0)
    option, letter = problem.solution[0]["text"].split("=")
    other = next(one for one in LETTERS if one != letter)
    assert task.grade(problem, [{"type": "text", "text": f"{option}={letter}"}])
    for wrong in (f"{option}={other}", letter, option):
        assert not task.grade(problem, [{"type": "text", "text": wrong}])
