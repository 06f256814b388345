"""What numbers may be, wherever they come from: a command line, a request, a file (layer 0).

One range for one thing, so that no door lets in what another refuses. Counts and lengths end where
int32, in which the device has them, does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 2**31 - 1  # int32's
SHOWN = 40  # characters of a value that an error repeats


class NumberError(ValueError):
    """A number that cannot be; the message says what may be."""


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; whole ones only, unless `whole` is False."""

    least: float
    most: float = MOST
    whole: bool = True
    open: bool = False  # `least` itself is not among them

    @property
    def told(self) -> str:
        """In words."""
        kind = "a whole number" if self.whole else "a number"
        if self.open:
            return f"{kind} above {self.least:g} and at most {_plain(self.most)}"
        return f"{kind} from {_plain(self.least)} to {_plain(self.most)}"

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        above = value > self.least if self.open else value >= self.least
        return above and value <= self.most

    def check(self, value: float, name: str) -> None:
        """Raises NumberError for a number outside, which is called `name` in it."""
        if not self.holds(value):
            raise NumberError(f"{name} is {cut(str(value))}; it must be {self.told}.")

    def parse(self, text: str) -> float:
        """The number that a text says. Raises NumberError for any other text."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # none, or one of more digits than Python reads
            value = math.nan
        if not self.holds(value):
            raise NumberError(f"{cut(repr(text))} is not {self.told}")
        return value


def cut(text: str) -> str:
    """A value as an error repeats it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1e4 else f"{value:g}"


COUNT = Range(1)
WHOLE = Range(0)
INTEGER = Range(-(2**63), 2**63 - 1)
SEED = Range(0, 2**32 - 1)
TEMPERATURE = Range(0, 10, whole=False)
API_TEMPERATURE = Range(0, 2, whole=False)  # OpenAI's
TOP_K = WHOLE
TOP_P = Range(0, 1, whole=False, open=True)
PORT = Range(0, 65_535)
SECONDS = Range(0, 1e6, whole=False)  # some eleven days
ROW_TOKENS = Range(2, 2**24)
RATIO = Range(0, 1e6, whole=False, open=True)  # training tokens for a parameter
DEPTH = Range(1, 1_024)
AT_ONCE = Range(1, 64)  # downloads: more is impolite to a server
