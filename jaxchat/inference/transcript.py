"""What the assistant says, while it comes: in parts (`PartStream`), and as one text (`Scribe`).

As a text, a call of the tool and its result stand in brackets, `[calculator: 37 * 24 = 888]`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part, PartParser, PartType


def as_text(parts: Sequence[Part]) -> str:
    """Whole parts as text."""
    scribe = Scribe()
    pieces = [scribe.open(part["type"]) + part["text"] for part in parts]
    return "".join(pieces) + scribe.close()


def printable(text: str) -> str:
    """Control characters but for tab and newline replaced: a model's words steer no terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\t\n" else c for c in text
    )


class PartStream:
    """Turns the ids of a completion into pieces of its parts while they arrive.

    A call or a result is announced by a piece without text; the pieces that follow, up to the next
    announcement or a piece of text, are its own. Characters of several tokens come whole, never as
    broken UTF-8. Joined, the pieces are the parts that `parse_completion` finds.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._parser = PartParser(tokenizer)

    def feed(self, ids: Sequence[int]) -> list[Part]:
        """The pieces that new ids add."""
        pieces: list[Part] = []
        for token in ids:
            added, *opened = self._parser.feed(token)
            pieces += [added] if added["text"] else []
            pieces += [part for part in opened if part["type"] != "text"]
        return pieces

    def close(self) -> list[Part]:
        """The pieces that are left once no more ids come."""
        rest = self._parser.close()
        return [rest] if rest["text"] else []


class Scribe:
    """Writes pieces of parts as one text; `paint` and `plain` go around what is in brackets."""

    def __init__(self, paint: str = "", plain: str = "") -> None:
        self._paint, self._plain = paint, plain
        self._shown: PartType = "text"

    def write(self, piece: Part) -> str:
        """The text of a piece, with the brackets that come before it."""
        if not piece["text"]:
            return self.open(piece["type"])
        before = "" if piece["type"] == self._shown else self.open(piece["type"])
        return before + piece["text"]

    def open(self, kind: PartType) -> str:
        """What stands between the part before and a new one."""
        before, self._shown = self._shown, kind
        if (before, kind) == ("python", "python_output"):
            return " = "
        opening = {"text": "", "python": "[calculator: ", "python_output": "[result: "}[kind]
        closed = "" if before == "text" else f"]{self._plain}\n"
        return closed + (self._paint if opening else "") + opening

    def close(self) -> str:
        """What stands after the last part."""
        shown, self._shown = self._shown, "text"
        return "" if shown == "text" else f"]{self._plain}"
