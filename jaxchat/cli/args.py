"""Types of command-line arguments: the ranges of `numbers`, for argparse (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from jaxchat.config import numbers
from jaxchat.config.numbers import NumberError, Range


def integer(allowed: Range) -> Callable[[str], int]:
    """Reads a whole number of a range."""

    def read(text: str) -> int:
        return int(_parse(allowed, text))

    return read


def real(allowed: Range) -> Callable[[str], float]:
    """Reads a number of a range."""

    def read(text: str) -> float:
        return float(_parse(allowed, text))

    return read


def _parse(allowed: Range, text: str) -> float:
    try:
        return allowed.parse(text)
    except NumberError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


positive = integer(numbers.COUNT)
whole = integer(numbers.WHOLE)
seed = integer(numbers.SEED)
temperature = real(numbers.TEMPERATURE)
seconds = real(numbers.SECONDS)
port = integer(numbers.PORT)
depth = integer(numbers.DEPTH)
row_tokens = integer(numbers.ROW_TOKENS)
at_once = integer(numbers.AT_ONCE)
