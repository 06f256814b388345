"""Curves of characters: every value is where it belongs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.runs.watch import BLANK, DOTS, draw


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """(column, row from the top) of all dots."""
    return {
        (2 * x + column, 4 * y + row)
        for y, line in enumerate(lines)
        for x, character in enumerate(line)
        for column in range(2)
        for row in range(4)
        if (ord(character) - BLANK) & DOTS[column][row]
    }


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right():
    lines, low, high = draw([0, 1, 2, 3], [9, 6, 3, 0], 2, 1)
    assert (low, high) == (0, 9)
    assert dots(lines) == {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_far_values_are_joined_by_a_straight_line():
    lines, *_ = draw([0, 9], [9, 0], 5, 3)
    assert {column for column, _ in dots(lines)} == set(range(10))
    assert {row for _, row in dots(lines)} == set(range(12))
    assert max(abs(row - column * 11 / 9) for column, row in dots(lines)) < 1.2


def test_a_constant_is_drawn_in_the_middle():
    lines, low, high = draw([5], [2], 3, 2)
    assert (low, high) == (2, 2)
    assert dots(lines) == {(0, 4)}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(1, 20))
def test_every_value_has_a_dot_and_the_size_is_right(ys, width):
    lines, low, high = draw(list(range(len(ys))), ys, width, 4)
    assert [len(line) for line in lines] == [width] * 4
    assert (low, high) == (min(ys), max(ys))
    rows = {row for _, row in dots(lines)}
    if low < high:
        assert {0, 15} <= rows


def test_no_values_no_curve():
    with pytest.raises(ValueError, match="0 xs and 0 ys"):
        draw([], [], 3, 2)
