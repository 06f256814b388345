"""Ranges of numbers, wherever they come from: a command line, a request, a file.

One range for one thing, so that no entry accepts what another refuses. Counts and lengths end where
int32, the device's type for them, does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 2**31 - 1  # int32's
UNBOUNDED = 2**63 - 1  # TOML's and JSON's largest integer; as the end of a range, there is none
SHOWN = 40  # characters of a value that an error repeats


class NumberError(ValueError):
    """A number out of range; the message says what is allowed."""


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; whole ones only, unless `whole` is False."""

    least: float
    most: float = MOST
    whole: bool = True
    open: bool = False  # `least` itself is excluded
    open_end: bool = False  # `most` itself is excluded

    @property
    def text(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.whole else "a number"
        if self.most >= UNBOUNDED:
            return (
                f"{kind} {f'above {self.least:g}' if self.open else f'of {self.least:g} or more'}"
            )
        start = f"above {self.least:g} and" if self.open else f"from {_plain(self.least)}"
        if self.open_end:
            return f"{kind} {start} to below {_plain(self.most)}"
        return f"{kind} {start} {'at most' if self.open else 'to'} {_plain(self.most)}"

    def __contains__(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        above = value > self.least if self.open else value >= self.least
        return above and (value < self.most if self.open_end else value <= self.most)

    def check(self, value: float, name: str) -> None:
        """Raises NumberError for a number outside, which is called `name` in it."""
        if value not in self:
            raise NumberError(f"{name} is {cut(str(value))}; it must be {self.text}.")

    def parse(self, text: str) -> float:
        """The number that a text says. Raises NumberError for any other text."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # none, or one of more digits than Python reads
            value = math.nan
        if value not in self:
            raise NumberError(f"{cut(repr(text))} is not {self.text}")
        return value


def cut(text: str) -> str:
    """A value as an error repeats it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1e4 else f"{value:g}"


COUNT = Range(1)
WHOLE = Range(0)
SEED = Range(0, 2**32 - 1)
TEMPERATURE = Range(0, 10, whole=False)
API_TEMPERATURE = Range(0, 2, whole=False)  # OpenAI's
TOP_K = WHOLE
TOP_P = Range(0, 1, whole=False, open=True)
MIN_P = Range(0, 1, whole=False)
REPETITION_PENALTY = Range(0, 10, whole=False, open=True)
PENALTY = Range(-2, 2, whole=False)  # OpenAI's, by frequency and by presence
BIAS = Range(-100, 100, whole=False)  # OpenAI's, of a logit
PORT = Range(0, 65_535)
SECONDS = Range(0, 1e6, whole=False)  # some eleven days
ROW_TOKENS = Range(2, 2**24)
RATIO = Range(0, 1e6, whole=False, open=True)  # training tokens for a parameter
DEPTH = Range(1, 1_024)
AT_ONCE = Range(1, 64)  # downloads: more is impolite to a server
