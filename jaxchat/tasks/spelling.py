"""Spelling a word letter by letter: what a model that reads tokens cannot see."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from jaxchat.tasks.base import GeneratedTask, Problem, held_out, say

# always a test word, because people try it first
SHOWN_WORD = "strawberry"

# What people ask for and documentation has none of: it would say "array", never "banana".
EVERYDAY_WORDS = tuple(
    """
    apple apricot autumn bakery ballet banana barrel basket bedroom berry bicycle biscuit blanket
    blossom blueberry bottle bread breakfast brother butter butterfly candle carrot castle cherry
    chicken chocolate coffee cookie cottage cranberry cupboard dancer daughter desert diamond dinner
    doctor dolphin dragon dream eagle elephant evening family farmer father feather fiddle finger
    flower forest friend garden giraffe grandma grape guitar hammer happy harbor honey horse
    hospital island jacket jungle kettle kitchen kitten ladder lemon letter lion mirror monkey
    morning mother mountain mulberry music necklace orange orchard paper parrot peach pencil pepper
    piano picture pillow pirate potato prairie puppy rabbit rainbow raspberry ribbon river rocket
    saddle sandwich school seashell shadow silver sister sparrow spider spoon squirrel straw
    strawman summer sunshine teacher thunder tiger tomato train tunnel turtle umbrella uncle valley
    village violin walnut water weather whale window winter wizard yellow zebra
    """.split()
)

_WORD = re.compile(r"(?<![\w'./\\@#$%&=<>-])[a-z]{3,10}(?![\w'/\\@=(\[{-]|\.\w)", re.ASCII)
_VOWELS = re.compile("[aeiouy]")
_RUN = re.compile(r"(.)\1\1|[^aeiouy]{5}")  # "aaa", "bcdfg": nobody's word

# every wording has the word behind a space, so that it is tokenized alike in all of them
_QUESTIONS = (
    "Spell out the word {}.",
    "Spell {}.",
    "Please spell {}.",
    "How do you spell {}?",
    "Can you spell {}?",
    "How is the word {} spelled?",
    "Spell {} letter by letter.",
    "Which letters make up {}?",
)


def select_words(texts: Iterable[str], limit: int, *, min_count: int = 5) -> tuple[str, ...]:
    """The `limit` commonest English-looking words of 3 to 10 lower-case letters, commonest first.

    A word counts where it stands as in prose, free of the marks of code (`os.path`, `x-y`,
    `call(`); it has a vowel, and is no rarer than `min_count`. Ties are broken by the alphabet,
    so the same texts give the same words in any order.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    ranked = sorted(
        (word for word, count in counts.items() if count >= min_count and _english(word)),
        key=lambda word: (-counts[word], word),
    )
    return tuple(ranked[:limit])


def spelled(word: str) -> str:
    """ "cat" -> "c-a-t"."""
    return "-".join(word)


def is_test_word(word: str, always_train: Collection[str] = ()) -> bool:
    """The split that spelling and counting share: by the word."""
    return word == SHOWN_WORD or (word not in always_train and held_out(word))


class WordTask(GeneratedTask):
    """A task on single words. The word is the key.

    `always_train` are words never held out. A tokenizer makes one token of a very common word,
    and the letters of one token can be learnt only by being told: give those words here, and the
    test asks what can be worked out from the pieces of a word.
    """

    def __init__(
        self, seed: int, words: Sequence[str], *, always_train: Collection[str] = ()
    ) -> None:
        super().__init__(seed)
        bad = next((w for w in words if not (w.isascii() and w.isalpha() and w.islower())), None)
        if bad is not None:
            raise ValueError(f"words are of lower-case letters a to z only; got {bad!r}")
        self.words = tuple(dict.fromkeys([*words, SHOWN_WORD]))
        self.always_train = frozenset(always_train)
        if all(map(self.is_test, self.words)):
            raise ValueError(f"task {self.name!r} has no training word; give it more words")

    def is_test(self, key: str) -> bool:
        return is_test_word(key, self.always_train)


class SpellingTask(WordTask):
    """ "Spell out the word cat." -> "c-a-t"."""

    name = "spelling"

    def draw(self, rng: random.Random) -> Problem:
        word = rng.choice(self.words)
        user = rng.choice(_QUESTIONS).format(word)
        return Problem(self.name, word, say(user, spelled(word)), spelled(word))


def _english(word: str) -> bool:
    return bool(_VOWELS.search(word)) and not _RUN.search(word)
