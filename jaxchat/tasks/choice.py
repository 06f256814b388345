"""Multiple choice over the tables of facts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jaxchat.tasks.base import GeneratedTask, Problem, say
from jaxchat.tasks.facts import TABLES, question

LETTERS = "ABCD"


class ChoiceTask(GeneratedTask):
    """A question with four options; the answer is the right option's line, "Paris=B".

    The key is the fact and the set of its options, so a held-out problem's options never appear
    in training beside that fact, in any order or wording. The fact itself does appear: what is
    measured is choosing among new options, not unseen knowledge.

    The wrong options are other answers of the same table, where every subject has one answer.

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
