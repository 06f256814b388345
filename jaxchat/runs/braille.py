"""Curves drawn with characters: each has 2 by 4 dots (layer 0)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

BLANK = 0x2800  # the Unicode block of braille patterns
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row from the top]


def draw(
    xs: Sequence[float], ys: Sequence[float], width: int, height: int
) -> tuple[list[str], float, float]:
    """A curve as `height` lines of `width` characters, and the values at its bottom and its top.

    Values are joined by straight lines without gaps. A single value is drawn in the middle.
    """
    if len(xs) != len(ys) or not xs:
        raise ValueError(f"{len(xs)} xs and {len(ys)} ys; a curve needs as many of both, and one.")
    columns, rows = 2 * width, 4 * height
    low, high = min(ys), max(ys)
    span, reach = (high - low) or 1.0, (max(xs) - min(xs)) or 1.0
    offset = 0.5 if high == low else 0.0
    dots = [
        (
            round((x - min(xs)) / reach * (columns - 1)),
            round(((high - y) / span + offset) * (rows - 1)),
        )
        for x, y in zip(xs, ys, strict=True)
    ]
    cells = [[0] * width for _ in range(height)]
    for (column, row), (to_column, to_row) in pairwise([dots[0], *dots]):
        right, down = to_column - column, to_row - row
        count = max(abs(right), abs(down), 1)
        for number in range(count + 1):
            x, y = column + round(right * number / count), row + round(down * number / count)
            cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    return ["".join(chr(BLANK + cell) for cell in line) for line in cells], low, high
