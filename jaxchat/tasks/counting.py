"""Counting a letter in a word: spelled into a call of the calculator, which counts."""

from __future__ import annotations

import random
import string

from jaxchat.tasks.base import Problem, say_with_tool
from jaxchat.tasks.spelling import WordTask, spelled
from jaxchat.tools.calculator import calculate

_ABSENT_SHARE = 0.15  # of questions, about a letter that may be missing

_QUESTIONS = (
    "How often does {letter} occur in {word}?",
    "How often does the letter {letter} occur in {word}?",
    "How many {letter}'s can you find in {word}?",
    "How many times do you write {letter} in {word}?",
    "How many times do you need {letter} to spell {word}?",
    "How often is {letter} used to spell {word}?",
    "Count each {letter} you see in {word}.",
    "Please count the letter {letter} in {word}.",
)


class CountingTask(WordTask):
    """ "How often does r occur in strawberry?": the same held-out words as in spelling.

    The key is the word, whichever letter is asked for.
    """

    name = "counting"

    def draw(self, rng: random.Random) -> Problem:
        word = rng.choice(self.words)
        absent = rng.random() < _ABSENT_SHARE
        letter = rng.choice(string.ascii_lowercase if absent else word)
        user = rng.choice(_QUESTIONS).format(letter=letter, word=word)
        expression = f'"{spelled(word)}".count("{letter}")'
        count = calculate(expression)
        times = "time" if count == "1" else "times"
        # Short: the word said again would be one more thing to get wrong.
        reply = f"The letter {letter} appears {count} {times}."
        return Problem(self.name, word, say_with_tool(user, expression, count, reply), count)
