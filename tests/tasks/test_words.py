"""Spelling and counting: the same held-out words, right letters, sensible words."""

import pytest

from jaxchat.tasks.words import SHOWN_WORD, CountingTask, SpellingTask, select_words

WORDS = [a + b + c for a in ("ban", "con", "dis", "pre") for b in "aeiou" for c in ("da", "ter")]
DRAWS = 5_000


def test_spelling_spells() -> None:
    task = SpellingTask(0, WORDS)
    for index in range(500):
        problem = task.problem("train", index)
        assert problem.answer.replace("-", "") == problem.key
        assert f" {problem.key}" in problem.prompt  # tokenized as in running text
        assert problem.solution == [{"type": "text", "text": "-".join(problem.key)}]


def test_counting_counts() -> None:
    task = CountingTask(0, WORDS)
    absent = 0
    for index in range(1_000):
        problem = task.problem("train", index)
        call, output, reply = (part["text"] for part in problem.solution)
        _, _, letter, _, count, times = reply.removesuffix(".").split()
        word = problem.key
        assert f" {word}" in problem.prompt
        assert f" {letter}" in problem.prompt
        assert call == f'"{"-".join(word)}".count("{letter}")'
        assert int(count) == int(output) == word.count(letter)
        assert times == ("time" if count == "1" else "times")
        absent += count == "0"
    assert 50 < absent < 200


def test_strawberry_is_always_held_out_even_where_the_words_lack_it() -> None:
    for task in (SpellingTask(0, WORDS), CountingTask(0, WORDS, always_train=[SHOWN_WORD])):
        assert SHOWN_WORD not in {task.problem("train", index).key for index in range(DRAWS)}
        assert SHOWN_WORD in {task.problem("test", index).key for index in range(30)}


def test_spelling_and_counting_hold_out_the_same_words() -> None:
    spelling, counting = SpellingTask(0, WORDS), CountingTask(7, WORDS)
    held_out = {spelling.problem("test", index).key for index in range(100)}
    assert held_out == {counting.problem("test", index).key for index in range(100)}
    assert not held_out & {counting.problem("train", index).key for index in range(DRAWS)}


def test_words_to_train_on_are_never_held_out() -> None:
    before = {SpellingTask(0, WORDS).problem("test", index).key for index in range(100)}
    some = sorted(before - {SHOWN_WORD})[0]
    task = SpellingTask(0, WORDS, always_train=[some])
    assert some not in {task.problem("test", index).key for index in range(100)}
    assert some in {task.problem("train", index).key for index in range(DRAWS)}


@pytest.mark.parametrize("bad", ["Upper", "two words", "naïve", "x2", ""])
def test_a_word_of_other_characters_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="lower-case letters a to z only; got"):
        SpellingTask(0, ["fine", bad])


def test_no_words_at_all_is_explained() -> None:
    with pytest.raises(ValueError, match="'counting' has no training word; give it more words"):
        CountingTask(0, [])


PROSE = "The window is open, and (window) or window! Letters; letters: a garden. "
CODE = (
    "os.window x_garden garden_x garden.path = garden(1) Garden GARDEN <letters> /letters/ letter's"
)


def test_words_are_ranked_by_how_often_they_stand_in_prose() -> None:
    assert select_words([PROSE * 5, CODE * 50], 3) == ("window", "and", "garden")


def test_equal_counts_are_ranked_by_the_alphabet_whatever_the_order_of_texts() -> None:
    texts = ["pear " * 9, "apple " * 9, "plum " * 9]
    assert select_words(texts, 2) == select_words(reversed(texts), 2) == ("apple", "pear")


def test_what_is_no_word_is_left_out() -> None:
    texts = ["hmm brr kwargs ccccat aaah strngth at responsibility fine " * 10, "rare"]
    assert select_words(texts, 99) == ("fine", "kwargs")
