"""Curves drawn with characters: each has 2 by 4 dots (layer 0)."""

from __future__ import annotations

from collections.abc import Sequence

BLANK = 0x2800  # the Unicode block of braille patterns
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row from the top]


def draw(
    xs: Sequence[float], ys: Sequence[float], width: int, height: int
) -> tuple[list[str], float, float]:
    """A curve as `height` lines of `width` characters, and the values at its bottom and its top.

    Dots of one column are joined to those of the next, so that steep parts have no gaps. A single
    value is drawn in the middle.
    """
    if len(xs) != len(ys) or not xs:
        raise ValueError(f"{len(xs)} xs and {len(ys)} ys; a curve needs as many of both, and one.")
    columns, rows = 2 * width, 4 * height
    low, high = min(ys), max(ys)
    span, reach = (high - low) or 1.0, (max(xs) - min(xs)) or 1.0
    offset = 0.5 if high == low else 0.0
    by_column: dict[int, list[int]] = {}
    for x, y in zip(xs, ys, strict=True):
        column = round((x - min(xs)) / reach * (columns - 1))
        row = round(((high - y) / span + offset) * (rows - 1))
        by_column.setdefault(column, []).append(row)
    cells = [[0] * width for _ in range(height)]
    before: list[int] | None = None
    for column in sorted(by_column):
        here = by_column[column]
        reached = here if before is None else [*here, before[-1]]
        for row in range(min(reached), max(reached) + 1):
            cells[row // 4][column // 2] |= DOTS[column % 2][row % 4]
        before = here
    return ["".join(chr(BLANK + cell) for cell in line) for line in cells], low, high
