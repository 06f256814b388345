"""What crosses the pipe between a program and its tests."""

import json
import math
from collections import Counter, OrderedDict
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxchat.tools.sandbox.remote import Ended, Opaque, decode, encode

SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    | st.binary(max_size=3) | st.complex_numbers(allow_nan=False) | st.decimals(allow_nan=False)
    | st.fractions()
)  # fmt: skip
KEYS = SIMPLE | st.lists(SIMPLE, max_size=2).map(tuple) | st.frozensets(SIMPLE, max_size=2)
LISTS = st.lists(SIMPLE, max_size=3) | st.lists(KEYS, max_size=3).map(tuple)
VALUES = (
    SIMPLE | LISTS | st.sets(KEYS, max_size=3) | st.dictionaries(KEYS, LISTS, max_size=3)
    | st.lists(st.dictionaries(KEYS, SIMPLE, max_size=2) | LISTS, max_size=3)
)  # fmt: skip


def across(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all through where order is kept."""
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=50)
@given(VALUES)
def test_plain_data_arrives_as_it_was(value: Any) -> None:
    assert same(across(value), value)


def test_nan_infinity_and_large_integers() -> None:
    assert math.isnan(across(math.nan))
    assert across([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert across(10**4000) == 10**4000


def test_subclasses_arrive_as_what_they_derive_from() -> None:
    class Equal(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert across(Equal(7)) != 8
    assert type(across(Equal(7))) is int
    assert across(Counter("aab")) == {"a": 2, "b": 1}
    assert across(OrderedDict(a=1)) == {"a": 1}
    assert across([True, Decimal("1.50"), Fraction(1, 3)]) == [True, Decimal("1.5"), Fraction(1, 3)]


def test_iterators_and_ranges() -> None:
    assert list(across(n * n for n in range(4))) == [0, 1, 4, 9]
    assert across(map(str, [1])) != ["1"]
    assert across(range(1, 9, 2)) == range(1, 9, 2)


def test_what_is_no_data_equals_nothing() -> None:
    arrived = across([object(), len])
    assert all(isinstance(one, Opaque) for one in arrived)
    assert arrived[0] != arrived[1]


@pytest.mark.parametrize("message", [{}, ["unknown", 1], [[]], ["list", {}], ["other", {}][1]])
def test_nonsense_is_refused(message: Any) -> None:
    with pytest.raises(Ended):
        decode(message)
