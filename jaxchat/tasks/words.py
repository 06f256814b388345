"""Tasks on single words: spelling and counting letters, and repeating words.

A model that reads tokens cannot see letters; it learns which ones a word is made of.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from jaxchat.tasks.base import GeneratedTask, Problem, held_out, say, say_with_tool
from jaxchat.tools.calculator import calculate

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
_RUN = re.compile(r"(.)\1\1|[^aeiouy]{5}")  # "aaa", "bcdfg": not a word

# every wording has the word behind a space, so that it is tokenized alike in all of them
_SPELL_QUESTIONS = (
    "Spell out the word {}.",
    "Spell {}.",
    "Please spell {}.",
    "How do you spell {}?",
    "Can you spell {}?",
    "How is the word {} spelled?",
    "Spell {} letter by letter.",
    "Which letters make up {}?",
)
_COUNT_QUESTIONS = (
    "How often does {letter} occur in {word}?",
    "How often does the letter {letter} occur in {word}?",
    "How many {letter}'s can you find in {word}?",
    "How many times do you write {letter} in {word}?",
    "How many times do you need {letter} to spell {word}?",
    "How often is {letter} used to spell {word}?",
    "Count each {letter} you see in {word}.",
    "Please count the letter {letter} in {word}.",
)
_REPEAT_QUESTIONS = ("Repeat:\n{}", "Say this again:\n{}", "Copy these words:\n{}")
MAX_WORDS = 9  # of a sequence to be repeated
_ABSENT_SHARE = 0.15  # of questions, about a letter that may be missing


def select_words(texts: Iterable[str], limit: int, *, min_count: int = 5) -> tuple[str, ...]:
    """The `limit` commonest English-looking words of 3 to 10 lower-case letters, commonest first.

    A word counts where it stands as in prose, free of the marks of code (`os.path`, `x-y`,
    `call(`); it has a vowel, and is no rarer than `min_count`. Ties are broken by the alphabet,
    so the same texts give the same words in any order.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    common = (word for word, count in counts.items() if count >= min_count)
    english = [word for word in common if _VOWELS.search(word) and not _RUN.search(word)]
    return tuple(sorted(english, key=lambda word: (-counts[word], word))[:limit])


def spelled(word: str) -> str:
    """ "cat" -> "c-a-t"."""
    return "-".join(word)


class WordTask(GeneratedTask):
    """A task on single words. The word is the key.

    `always_train` are words never held out. A tokenizer makes one token of a very common word,
    and the letters of one token can be learned only by heart: give those words here, and the test
    asks what can be worked out from the pieces of a word.
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
        return key == SHOWN_WORD or (key not in self.always_train and held_out(key))


class SpellingTask(WordTask):
    """ "Spell out the word cat." -> "c-a-t"."""

    name = "spelling"

    def draw(self, rng: random.Random) -> Problem:
        word = rng.choice(self.words)
        user = rng.choice(_SPELL_QUESTIONS).format(word)
        return Problem(self.name, word, say(user, spelled(word)), spelled(word))


class CountingTask(WordTask):
    """ "How often does r occur in strawberry?": the same held-out words as in spelling.

    The key is the word, whichever letter is asked for.
    """

    name = "counting"

    def draw(self, rng: random.Random) -> Problem:
        word = rng.choice(self.words)
        absent = rng.random() < _ABSENT_SHARE
        letter = rng.choice(string.ascii_lowercase if absent else word)
        user = rng.choice(_COUNT_QUESTIONS).format(letter=letter, word=word)
        expression = f'"{spelled(word)}".count("{letter}")'
        count = calculate(expression)
        times = "time" if count == "1" else "times"
        # Short: the word said again would be one more thing to get wrong.
        reply = f"The letter {letter} appears {count} {times}."
        return Problem(self.name, word, say_with_tool(user, expression, count, reply), count)


class RepeatTask(GeneratedTask):
    """ "Repeat:\\nriver stone lamp" -> "river stone lamp", for words drawn at random.

    The words follow a newline, so that they are the same tokens in question and reply. Nothing but
    looking back says which word comes next: this teaches attention to find what followed the same
    token before (an induction head), which copying an option's letter or a word needs too. The key
    is the sequence of words.
    """

    name = "repeat"

    def __init__(self, seed: int, words: Sequence[str]) -> None:
        super().__init__(seed)
        if not words:
            raise ValueError(f"task {self.name!r} has no words; give it some")
        self.words = tuple(words)

    def draw(self, rng: random.Random) -> Problem:
        text = " ".join(rng.choice(self.words) for _ in range(rng.randint(2, MAX_WORDS)))
        return Problem(self.name, text, say(rng.choice(_REPEAT_QUESTIONS).format(text), text), text)
