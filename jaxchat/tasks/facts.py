"""Small tables of facts, written for this project; questions on them, and multiple choice.

Every fact has one right answer among the answers of its table, so that `choice` can draw its wrong
options from the same table.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from jaxchat.tasks.base import GeneratedTask, Problem, say


@dataclass(frozen=True)
class Table:
    """Facts of one kind."""

    name: str
    questions: tuple[str, ...]  # wordings with a place {} for the subject
    facts: tuple[tuple[str, str], ...]  # (subject, answer)

    @property
    def answers(self) -> tuple[str, ...]:
        """The different answers, sorted."""
        return tuple(sorted({answer for _, answer in self.facts}))


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Facts written "subject: answer, subject: answer, ..."."""
    pairs = (pair.split(":") for pair in text.split(","))
    return tuple((" ".join(subject.split()), answer.strip()) for subject, answer in pairs)


TABLES = (
    Table(
        "capitals",
        (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "What is {}'s capital?",
        ),
        _pairs(
            """France: Paris, Italy: Rome, Spain: Madrid, Germany: Berlin, England: London,
            Japan: Tokyo, China: Beijing, Egypt: Cairo, Russia: Moscow, Greece: Athens,
            Norway: Oslo, Sweden: Stockholm, Poland: Warsaw, Austria: Vienna, Portugal: Lisbon,
            Ireland: Dublin, Cuba: Havana, Peru: Lima, Kenya: Nairobi, Canada: Ottawa"""
        ),
    ),
    Table(
        "opposites",
        ("What is the opposite of {}?", "Which word means the opposite of {}?"),
        _pairs(
            """hot: cold, big: small, up: down, left: right, open: closed, fast: slow, wet: dry,
            full: empty, old: new, light: dark, high: low, early: late, first: last, true: false,
            good: bad, long: short, happy: sad, rich: poor"""
        ),
    ),
    Table(
        "young animals",
        ("What is a young {} called?", "What do you call a baby {}?"),
        _pairs(
            """dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet,
            duck: duckling, goose: gosling, goat: kid, bear: cub, deer: fawn, frog: tadpole,
            kangaroo: joey, swan: cygnet"""
        ),
    ),
    Table(
        "animal sounds",
        ("What sound does {} make?", "What is the sound of {}?"),
        _pairs(
            """a dog: bark, a cat: meow, a cow: moo, a pig: oink, a horse: neigh, a duck: quack,
            a lion: roar, a bee: buzz, an owl: hoot, a frog: croak, a mouse: squeak,
            a donkey: bray, a hen: cluck, a turkey: gobble"""
        ),
    ),
    Table(
        "colors",
        ("What color is {}?", "What is the color of {}?"),
        _pairs(
            """a clear sky: blue, fresh grass: green, snow: white, coal: black, a lemon: yellow,
            a carrot: orange, blood: red, chocolate: brown, a flamingo: pink, an elephant: gray,
            an eggplant: purple, milk: white, a ripe tomato: red, a pumpkin: orange,
            a crow: black, spinach: green"""
        ),
    ),
    Table(
        "elements",
        ("Which element has the symbol {}?", "What does the chemical symbol {} stand for?"),
        _pairs(
            """H: hydrogen, He: helium, O: oxygen, N: nitrogen, Fe: iron, Au: gold, Ag: silver,
            Cu: copper, Na: sodium, Pb: lead, Sn: tin, Zn: zinc, Ca: calcium, Si: silicon"""
        ),
    ),
    Table(
        "months",
        ("Which month comes after {}?", "What month follows {}?"),
        _pairs(
            """January: February, February: March, March: April, April: May, May: June,
            June: July, July: August, August: September, September: October, October: November,
            November: December, December: January"""
        ),
    ),
    Table(
        "days",
        ("Which day comes after {}?", "What day follows {}?"),
        _pairs(
            """Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday,
            Friday: Saturday, Saturday: Sunday, Sunday: Monday"""
        ),
    ),
    Table(
        "number words",
        ("How is the number {} written in words?", "What is the word for the number {}?"),
        _pairs(
            """1: one, 2: two, 3: three, 4: four, 5: five, 6: six, 7: seven, 8: eight, 9: nine,
            10: ten, 11: eleven, 12: twelve, 20: twenty, 30: thirty, 40: forty, 50: fifty"""
        ),
    ),
    Table(
        "plurals",
        ("What is the plural of {}?", "What do you call more than one {}?"),
        _pairs(
            """mouse: mice, child: children, foot: feet, tooth: teeth, man: men, woman: women,
            goose: geese, ox: oxen, leaf: leaves, knife: knives, wolf: wolves, city: cities,
            box: boxes, baby: babies, person: people"""
        ),
    ),
    Table(
        "past tense",
        ("What is the past tense of {}?", "What is {} in the past tense?"),
        _pairs(
            """go: went, see: saw, eat: ate, run: ran, take: took, give: gave, write: wrote,
            come: came, make: made, know: knew, think: thought, buy: bought, find: found,
            sing: sang, break: broke, begin: began"""
        ),
    ),
    Table(
        "python keywords",
        ("Which Python keyword {}?", "In Python, which keyword {}?"),
        _pairs(
            """defines a function: def, defines a class: class, gives back a value: return,
            loops over items: for, loops while a condition holds: while, loads a module: import,
            handles an exception: except, throws an exception: raise, leaves a loop: break,
            skips to the next round of a loop: continue, removes a name: del,
            makes a nameless function: lambda, does nothing: pass, tests a condition: if"""
        ),
    ),
    Table(
        "planets",
        ("What is the {} planet from the Sun?", "Which planet is the {} from the Sun?"),
        _pairs(
            """first: Mercury, second: Venus, third: Earth, fourth: Mars, fifth: Jupiter,
            sixth: Saturn, seventh: Uranus, eighth: Neptune"""
        ),
    ),
    Table(
        "amounts",
        ("What is the number of {}?", "Count the {}."),
        _pairs(
            """sides of a triangle: three, sides of a square: four, sides of a pentagon: five,
            sides of a hexagon: six, legs on a spider: eight, days in a week: seven,
            months in a year: twelve, wheels on a bicycle: two, fingers on two hands: ten"""
        ),
    ),
)

LETTERS = "ABCD"
_OPENINGS = (
    "",
    "Please answer: ",
    "Question: ",
    "Quick question: ",
    "Tell me: ",
    "Hi! ",
    "One more: ",
)


def question(table: Table, subject: str, rng: random.Random) -> str:
    """One wording of the question for a subject."""
    return rng.choice(table.questions).format(subject)


class FactTask(GeneratedTask):
    """Questions on the facts, answered in a word: "What is the capital of France?" -> "Paris."

    What is held out is the exact wording of a question, never a fact: unseen facts cannot be
    answered. The bare questions are always training questions. Answers stay in small letters, so
    that they are the same tokens here as among the options of `choice`.
    """

    name = "facts"

    def draw(self, rng: random.Random) -> Problem:
        table = rng.choice(TABLES)
        subject, answer = rng.choice(table.facts)
        user = rng.choice(_OPENINGS) + question(table, subject, rng)
        if rng.random() < 0.25:
            user = user.removesuffix("?").removesuffix(".")
        return Problem(self.name, user.lower(), say(user, f"{answer}."), answer)

    def is_test(self, key: str) -> bool:
        return key not in _BARE_QUESTIONS and super().is_test(key)


_BARE_QUESTIONS = frozenset(
    wording.format(subject).lower()
    for table in TABLES
    for wording in table.questions
    for subject, _ in table.facts
)


class ChoiceTask(GeneratedTask):
    """A question with four options; the answer is the right option's line, "Paris=B".

    The key is the fact and the set of its options, so a held-out problem's options never appear
    in training beside that fact, in any order or wording. The fact itself does appear: what is
    measured is choosing among new options, not unseen knowledge.

    The reply repeats the option before its letter: a model of two million parameters, pretrained
    on 1.4M tokens, then chooses right 97% of the time after 0.2M tokens of problems; with the
    letter alone as reply it is still guessing there.
    """

    name = "choice"

    def draw(self, rng: random.Random) -> Problem:
        table = rng.choice(TABLES)
        subject, answer = rng.choice(table.facts)
        wrong = [other for other in table.answers if other != answer]
        options = rng.sample(wrong, len(LETTERS) - 1)
        key = f"{table.name}: {subject}: {answer} | {', '.join(sorted(options))}"
        options.insert(rng.randrange(len(LETTERS)), answer)
        letter = LETTERS[options.index(answer)]
        user = _ask(question(table, subject, rng), options)
        return Problem(self.name, key, say(user, f"{answer}={letter}"), letter)


def _ask(wording: str, options: Sequence[str]) -> str:
    """The question with its options, one a line.

    An option stands at the head of its line: there it is tokenized as in the reply, and the
    letter follows it as in the reply.
    """
    lines = [f"{option}={letter}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([wording, *lines, "Which one?"])
