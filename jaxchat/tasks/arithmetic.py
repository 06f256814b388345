"""Arithmetic through the calculator: word problems and bare questions."""

from __future__ import annotations

import random

from jaxchat.tasks.base import GeneratedTask, Problem, say_with_tool
from jaxchat.tools.calculator import calculate

_NAMES = ("Ann", "Ben", "Tom", "Sam", "Mia", "Max", "Eva", "Leo", "Kim", "Dan", "Amy", "Joe")
_THINGS = ("apples", "books", "pens", "cards", "coins", "cups", "eggs", "keys", "maps", "balls")

# {n} and {m} are names, {t} things; a, b, c the operands. Operands of a story are 2 or more, so
# that its plurals are right.
_BARE = (
    "What is {a} {op} {b}?",
    "{a} {op} {b}",
    "{a} {op} {b} = ?",
    "Compute {a} {op} {b}.",
    "Calculate {a} {op} {b}.",
    "How much is {a} {op} {b}?",
    "What is {a} {word} {b}?",
    "How much is {a} {word} {b}?",
)
_STORIES = {
    "+": (
        "{n} has {a} {t} and gets {b} more. How many {t} does {n} have now?",
        "{n} has {a} {t}. {m} has {b} {t}. How many {t} do they have together?",
        "{n} finds {a} {t} and then {b} more. How many {t} in all?",
        "There are {a} {t} in a box and {b} in a bag. How many {t} in all?",
        "{n} read {a} pages yesterday and {b} pages today. How many pages in all?",
        "A bus carries {a} people and {b} more get on. How many people are on it?",
    ),
    "-": (
        "{n} has {a} {t} and loses {b}. How many {t} are left?",
        "{n} had {a} {t} and gave {b} to {m}. How many {t} are left?",
        "There are {a} {t} in a box. {n} takes {b}. How many {t} are left?",
        "{n} has {a} {t}. {m} has {b} {t}. How many more {t} does {n} have?",
        "A bus carries {a} people and {b} get off. How many people are left?",
        "A book has {a} pages. {n} read {b} of them. How many pages are left?",
    ),
    "*": (
        "There are {a} boxes with {b} {t} each. How many {t} in all?",
        "{n} buys {a} bags of {b} {t}. How many {t} does {n} buy?",
        "{n} puts {b} {t} on each of {a} tables. How many {t} in all?",
        "One box holds {b} {t}. How many {t} do {a} boxes hold?",
        "{n} reads {b} pages a day. How many pages in {a} days?",
        "One ticket costs {b} dollars. How many dollars do {a} tickets cost?",
    ),
    "/": (
        "{n} shares {a} {t} among {b} friends. How many {t} does each get?",
        "{n} splits {a} {t} evenly into {b} bags. How many {t} in each bag?",
        "{a} {t} are packed in boxes of {b}. How many boxes are there?",
        "{b} tickets cost {a} dollars. How many dollars does one cost?",
    ),
}
_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
# Signs instead of the keyboard's, as pages typeset them and people write them
_SIGNS = (("*", "×"), ("*", "x"), ("/", "÷"), ("-", "−"))
_BARE_WITH_SIGN = (*(text for text in _BARE if "{op}" in text), "{a}{op}{b}", "What is {a}{op}{b}?")
_BARE_SHARE = 0.4
_NEGATIVE_SHARE = 0.2  # of bare subtractions, where the smaller number may come first

_TWO_STEPS = {
    "{a} + {b} - {c}": (
        "{n} has {a} {t}, gets {b} more and loses {c}. How many {t} are left?",
        "A bus carries {a} people. {b} get on and {c} get off. How many people are left?",
    ),
    "{a} - {b} + {c}": (
        "{n} has {a} {t}, loses {b} and finds {c}. How many {t} does {n} have now?",
        "A bus carries {a} people. {b} get off and {c} get on. How many people are on it?",
    ),
    "{a} * {b} + {c}": (
        "There are {a} boxes with {b} {t} each and {c} {t} in a bag. How many {t} in all?",
        "{n} buys {a} bags of {b} {t} and then {c} more {t}. How many {t} does {n} buy?",
    ),
    "{a} * {b} - {c}": (
        "There are {a} boxes with {b} {t} each. {n} takes {c}. How many {t} are left?",
        "{n} buys {a} bags of {b} {t} and loses {c}. How many {t} are left?",
    ),
    "({a} + {b}) * {c}": (
        "{n} gets {a} {t} and {m} gets {b} {t} each day. How many {t} in {c} days?",
        "A bag holds {a} {t} and a box holds {b}. How many {t} are in {c} of each?",
    ),
}

# always test problems, because people try them first: 37 * 24, in either order
_SHOWN = frozenset({"24 * 37"})


class _CalculatorTask(GeneratedTask):
    """Problems solved by one call of the calculator and the sentence "The answer is 888."."""

    def solved(self, key: str, user: str, expression: str) -> Problem:
        """The problem with its reference solution."""
        answer = calculate(expression)
        conversation = say_with_tool(user, expression, answer, f"The answer is {answer}.")
        return Problem(self.name, key, conversation, answer)

    def is_test(self, key: str) -> bool:
        return key in _SHOWN or super().is_test(key)


class ArithmeticTask(_CalculatorTask):
    """One operation on two numbers of one or two digits.

    The key is the operation, smaller operand first where the order does not matter: a held-out
    37 * 24 is never trained on as 24 * 37 either, in any wording. Divisions come out whole.
    """

    name = "arithmetic"

    def draw(self, rng: random.Random) -> Problem:
        op = rng.choices("+-*/", weights=(3, 3, 3, 2))[0]
        bare = rng.random() < _BARE_SHARE
        a, b = _operands(op, bare, rng)
        template = rng.choice(_BARE if bare else _STORIES[op])
        user = _fill(template, rng, a=a, b=b, op=op, word=_WORDS[op])
        return self.solved(_key(op, a, b), user, f"{a} {op} {b}")


class SignArithmeticTask(_CalculatorTask):
    """Bare questions with ×, x, ÷ or −, on the numbers and with the keys of `ArithmeticTask`.

    The call has the operator, as ever: what is 37 × 24? `37 * 24`.
    """

    name = "arithmetic_signs"

    def draw(self, rng: random.Random) -> Problem:
        op, sign = rng.choice(_SIGNS)
        a, b = _operands(op, True, rng)
        user = rng.choice(_BARE_WITH_SIGN).format(a=a, b=b, op=sign)
        return self.solved(_key(op, a, b), user, f"{a} {op} {b}")


class TwoStepArithmeticTask(_CalculatorTask):
    """Two operations in one story: harder, with room for reinforcement learning.

    The key is the expression.
    """

    name = "arithmetic_two_step"

    def draw(self, rng: random.Random) -> Problem:
        form = rng.choice(tuple(_TWO_STEPS))
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        if form.startswith("{a} -"):
            a, b = max(a, b), min(a, b)
        in_hand = a * b if form.startswith("{a} *") else a + b
        c = rng.randint(2, min(99, in_hand))  # not more is lost than there is
        user = _fill(rng.choice(_TWO_STEPS[form]), rng, a=a, b=b, c=c)
        expression = form.format(a=a, b=b, c=c)
        return self.solved(expression, user, expression)


def _key(op: str, a: int, b: int) -> str:
    first, second = sorted((a, b)) if op in "+*" else (a, b)
    return f"{first} {op} {second}"


def _operands(op: str, bare: bool, rng: random.Random) -> tuple[int, int]:
    least = 0 if bare else 2
    if op == "/":
        b = rng.randint(max(1, least), 49)
        return b * rng.randint(least, 99 // b), b
    a, b = rng.randint(least, 99), rng.randint(least, 99)
    if op == "-" and not (bare and rng.random() < _NEGATIVE_SHARE):
        a, b = max(a, b), min(a, b)
    return a, b


def _fill(template: str, rng: random.Random, **values: object) -> str:
    name, other = rng.sample(_NAMES, 2)
    return template.format(n=name, m=other, t=rng.choice(_THINGS), **values)
