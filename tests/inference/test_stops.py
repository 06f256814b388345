"""Stop texts in text that comes in pieces: the same as in the whole text."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.inference.stop_strings import StopFinder

TEXTS = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


def pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_pieces_give_the_text_before_the_first_complete_stop(text, stops, cuts):
    finder = StopFinder(stops)
    given_out = "".join(finder.feed(piece) for piece in pieces(text, cuts)) + finder.close()
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert given_out == (text[: min(ends)[1]] if ends else text)
    assert (finder.found is not None) == bool(ends)


def test_a_stop_that_is_complete_first_wins_over_one_that_begins_first():
    finder = StopFinder(["abb", "b"])
    assert finder.feed("ab") == "a"
    assert finder.found == "b"


def test_only_what_may_begin_a_stop_is_held_back():
    finder = StopFinder(["\nUser:"])
    assert finder.feed("Hello.") == "Hello."
    assert finder.feed("\nUs") == ""
    assert finder.feed("ually not") == "\nUsually not"
    assert finder.feed(" so\nUser: hi") == " so"
    assert finder.found == "\nUser:"
    assert finder.feed("more") + finder.close() == ""


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="a stop text is empty"):
        StopFinder(["x", ""])
