"""What the assistant says, as one text for people: whole (`as_text`) or as it comes (`Transcript`).

A call of the tool and its result stand in brackets, `[calculator: 37 * 24 = 888]`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat import DELIMITERS, Part, PartType


def as_text(parts: Sequence[Part]) -> str:
    """Parts as text."""
    pieces, kind = [], "text"
    for part in parts:
        pieces += [_between(kind, part["type"]), part["text"]]
        kind = part["type"]
    return "".join(pieces) + _end(kind)


def printable(text: str) -> str:
    """Control characters but for tab and newline replaced: a model's words steer no terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\t\n" else c for c in text
    )


def _between(old: str, new: str) -> str:
    if old == "python" and new == "python_output":
        return " = "
    opening = {"text": "", "python": "[calculator: ", "python_output": "[result: "}[new]
    closing = "" if old == "text" else "]\n"
    return closing + opening


def _end(kind: str) -> str:
    return "" if kind == "text" else "]"


class Transcript:
    """Turns the ids of a completion into text while they arrive.

    All that `feed` and `close` return, joined, is `as_text` of the completion's parts. Characters
    of several tokens come whole, never as broken UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._starts: dict[int, PartType] = {
            tokenizer.special(start): kind for kind, (start, _) in DELIMITERS.items()
        }
        self._ends = {tokenizer.special(end) for _, end in DELIMITERS.values()}
        self._stops = {tokenizer.special("<|assistant_end|>"), tokenizer.bos}
        self._stream = tokenizer.decode_stream()
        self._shown: PartType = "text"  # the kind of what was last shown
        self._kind: PartType = "text"  # the kind of what comes next
        self._ended = False

    def feed(self, ids: Sequence[int]) -> str:
        """The text that new ids add."""
        pieces = []
        for token in ids:
            if self._ended:
                break
            if token in self._stops:
                pieces.append(self.close())
            elif token in self._starts or token in self._ends:
                pieces.append(self._switch(self._starts.get(token, "text")))
            elif self._tokenizer.is_ordinary(token):
                pieces.append(self._say(self._stream.feed([token])))
        return "".join(pieces)

    def close(self) -> str:
        """The text that is left once no more ids come."""
        if self._ended:
            return ""
        self._ended = True
        return self._say(self._stream.close()) + _end(self._shown)

    def _say(self, text: str) -> str:
        return self._turn() + text if text else ""

    def _switch(self, kind: PartType) -> str:
        rest = self._say(self._stream.close())
        self._kind = kind
        # A call shows at once; text, which may turn out empty, only with its first character.
        return rest if kind == "text" else rest + self._turn(again=True)

    def _turn(self, *, again: bool = False) -> str:
        if self._kind == self._shown and not again:
            return ""
        between = _between(self._shown, self._kind)
        self._shown = self._kind
        return between
