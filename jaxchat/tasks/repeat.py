"""Repeating words: what a small model learns to copy by."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from jaxchat.tasks.base import GeneratedTask, Problem, say

_QUESTIONS = ("Repeat:\n{}", "Say this again:\n{}", "Copy these words:\n{}")
MAX_WORDS = 9


class RepeatTask(GeneratedTask):
    """ "Repeat:\\nriver stone lamp" -> "river stone lamp", for words drawn at random.

    The words follow a newline, so that they are the same tokens in question and reply. Nothing but
    looking back says which word comes next: this teaches attention to find what followed the same
    token before (an induction head), which copying an option's letter or a word needs too. The key
    is the sequence of words.
    """

    name = "repeat"

    def __init__(
        self, seed: int, words: Sequence[str], *, always_train: Collection[str] = ()
    ) -> None:
        super().__init__(seed)
        del always_train  # about the letters of words, which do not matter here
        if not words:
            raise ValueError(f"task {self.name!r} has no words; give it some")
        self.words = tuple(words)

    def draw(self, rng: random.Random) -> Problem:
        """A problem of either split."""
        text = " ".join(rng.choice(self.words) for _ in range(rng.randint(2, MAX_WORDS)))
        return Problem(self.name, text, say(rng.choice(_QUESTIONS).format(text), text), text)
