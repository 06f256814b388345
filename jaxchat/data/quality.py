"""Which documents are worth training on: readable English or code, and not seen before."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from jaxchat.data.documents import Document

MIN_CHARS = 200
NEAR_SHARE = 0.5  # of its long lines seen before make a document a near-duplicate
_LONG_LINE = 40  # characters

_WORD = re.compile("[A-Za-z]+")
_SMALL_WORDS = """
    the of to a is in and for be that this with by are as or if on it not an from which can you
    will when at use used all has have no may one return returns value
"""
_COMMON = frozenset(_SMALL_WORDS.split())

Verdict = Literal["documents", "duplicates", "near_duplicates"]


def is_worthwhile(document: Document) -> bool:
    """Whether a document is long enough, printable, and reads as English prose or as code."""
    text = document.text
    if not _is_unicode(text):
        return False
    if len(text) < MIN_CHARS or len(text) > 200 * (text.count("\n") + 1):  # data in long lines
        return False
    solid = "".join(text.split())
    odd = sum(not (c.isascii() and c.isprintable()) for c in solid) if not solid.isascii() else 0
    if odd > 0.02 * len(solid) or not _printable(solid):
        return False
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if document.source == "code":
        return letters > 0.5 * len(solid)
    common = sum(word.lower() in _COMMON for word in words)
    return (
        letters > 0.65 * len(solid) and 3 <= letters / len(words) <= 8 and common > 0.1 * len(words)
    )


class Deduplicator:
    """Remembers what went by, and names what comes again."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._lines: set[str] = set()

    def see(self, document: Document) -> Verdict:
        """The verdict on a document, which is remembered when it is new.

        Equal but for white space is a duplicate; half of its long lines seen before, a
        near-duplicate.
        """
        words = document.text.split()
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        if digest in self._texts:
            return "duplicates"
        lines = {line.strip() for line in document.text.splitlines()}
        lines = {line for line in lines if len(line) >= _LONG_LINE}
        if lines and len(lines & self._lines) > NEAR_SHARE * len(lines):
            return "near_duplicates"
        self._texts.add(digest)
        self._lines |= lines
        return "documents"


def _is_unicode(text: str) -> bool:
    """Whether no surrogate stands alone, as one may in a Python string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(solid: str) -> bool:
    return solid.isprintable() or sum(map(str.isprintable, solid)) > 0.99 * len(solid)
