"""Texts at which a completion ends, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import PartParser


class StopFinder:
    """Passes text on up to the first stop text, and holds back what could be the start of one.

    All that `feed` and `close` return, joined, is the text before the stop text that is the first
    to be complete (of two, the longer), and all of it where none occurs.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        """The stop text itself is passed on too where it is `included`.

        Raises ValueError for an empty stop text: it would be everywhere.
        """
        if not all(stops):
            raise ValueError("a stop text is empty; give texts of at least one character.")
        self._stops, self._included = tuple(stops), included
        self._held = ""
        self.found: str | None = None  # the stop text that occurred

    def feed(self, text: str, *, early: bool = False) -> str:
        """The text that is certain to stand before any stop text.

        A stop text that is complete with `early` text does not count.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if starts and not early:
            start, self.found = min(starts, key=lambda place: (place[0] + len(place[1]), place[0]))
            self._held = ""
            return text[: start + len(self.found) * self._included]
        safe = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[safe:]
        return text[:safe]

    def close(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


class StopWatch:
    """Looks for stop texts in what the ids of a completion say.

    Only text counts, joined: not the code of tool calls, nor what tools answer.
    """

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer) -> None:
        """Raises ValueError for an empty stop text."""
        self._finder = StopFinder(stops)
        self._parser = PartParser(tokenizer)

    def feed(self, token: int, *, early: bool = False) -> bool:
        """Whether a stop text is complete, after the next id, and not yet with `early` ones."""
        added = self._parser.feed(token)[0]
        if added["type"] == "text":
            self._finder.feed(added["text"], early=early)
        return self._finder.found is not None


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
