"""Detokenization: text, parts, stop texts and log-probabilities."""

import pytest
import tiny_model
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.serve.streaming import Detokenizer, TokenDelta, join
from jaxchat.tokenizer.chat_format import parse_completion

TOKENIZER = tiny_model.make_tokenizer()
SPECIALS = [TOKENIZER.special(f"<|{name}|>") for name in (
    "python_start", "python_end", "output_start", "output_end", "user_start"
)]  # fmt: skip


def delta_of(tokens, *, finished=None, alternatives=()):
    return TokenDelta(
        0, tokens, [1] * len(tokens), [-0.5] * len(tokens), alternatives or [()] * len(tokens),
        finished,
    )  # fmt: skip


def speak(tokens, sizes, stop=(), *, logprobs=False):
    """The deltas of tokens that come in pieces of these sizes, and then one by one."""
    detokenizer, deltas, start = Detokenizer(TOKENIZER, stop, logprobs=logprobs), [], 0
    for size in [*sizes, *[1] * len(tokens)]:
        if start < len(tokens):
            end = start + size
            finished = "length" if end >= len(tokens) else None
            deltas += detokenizer.feed(delta_of(tokens[start:end], finished=finished))
            start = end
    return deltas


@given(
    st.lists(st.sampled_from([*range(0, 300, 7), *SPECIALS]), min_size=1, max_size=30),
    st.lists(st.integers(1, 8), max_size=10),
)
def test_deltas_add_up_to_the_parts_whatever_comes(tokens, sizes):
    expected = []
    for part in parse_completion(tokens, TOKENIZER):
        if expected and expected[-1]["type"] == part["type"] == "text":
            expected[-1]["text"] += part["text"]  # a delimiter without its other half
        else:
            expected.append(part)
    assert join(speak(tokens, sizes)) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_characters_of_several_tokens_come_whole(size):
    text = "Grüße, 👩‍🚀 and 你好"
    deltas = speak(TOKENIZER.encode(text), [size] * 100)
    assert "".join(delta.text for delta in deltas) == text
    assert not any("\ufffd" in delta.text for delta in deltas)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stop_text_and_what_follows_are_not_sent(size):
    deltas = speak(TOKENIZER.encode("one two. three"), [size] * 100, stop=("wo. t", "zzz"))
    assert "".join(delta.text for delta in deltas) == "one t"


def test_what_may_begin_a_stop_text_is_held_back_until_that_is_decided():
    detokenizer = Detokenizer(TOKENIZER, ("XYZ",), logprobs=False)
    assert [d.text for d in detokenizer.feed(delta_of(TOKENIZER.encode("aXY")))] == ["a"]
    assert [d.text for d in detokenizer.feed(delta_of(TOKENIZER.encode("b")))] == ["XYb"]
    assert detokenizer.feed(delta_of(TOKENIZER.encode("XY"))) == []
    assert [d.text for d in detokenizer.feed(delta_of([], finished="length"))] == ["XY"]


def test_a_call_is_announced_even_where_it_stays_empty():
    start, end, *_ = SPECIALS
    deltas = speak([start, end, start, *TOKENIZER.encode("1")], [1] * 9)
    assert [(d.part, d.text, d.opens) for d in deltas] == [
        ("python", "", True), ("python", "", True), ("python", "1", False)
    ]  # fmt: skip


def test_two_consecutive_calls_stay_separate():
    start = SPECIALS[0]
    deltas = speak([start, *TOKENIZER.encode("1"), start, *TOKENIZER.encode("2")], [1] * 9)
    kinds = [delta.part for delta in deltas]
    assert kinds == ["python", "python", "text", "python", "python"]


def test_tokens_come_with_their_bytes_and_alternatives():
    (first, *_) = TOKENIZER.encode("👋")
    end = TOKENIZER.special("<|assistant_end|>")
    detokenizer = Detokenizer(TOKENIZER, (), logprobs=True)
    (delta,) = detokenizer.feed(
        TokenDelta(
            0, [first, end], [1, 0], [-0.5, -float("inf")], [((first, -0.5), (end, -2.0)), ()],
            "stop",
        )
    )  # fmt: skip
    one, two = delta.logprobs
    assert delta.text == "\ufffd"
    assert one["bytes"] == list(TOKENIZER.decode_bytes([first]))
    assert [other["token"] for other in one["top_logprobs"]] == ["\ufffd", "<|assistant_end|>"]
    assert one["jaxchat"] == {"id": first, "sampled": True}
    assert (two["token"], two["logprob"], two["top_logprobs"]) == ("<|assistant_end|>", -9999.0, [])
    assert two["jaxchat"] == {"id": end, "sampled": False}


def test_a_dispatch_is_split_into_its_tokens():
    tokens = TOKENIZER.encode("one two. three")
    whole = delta_of(tokens, finished="stop")
    parts = whole.split()
    assert [list(part.tokens) for part in parts] == [[token] for token in tokens]
    assert [part.finish_reason for part in parts] == [None] * (len(tokens) - 1) + ["stop"]
    assert whole.split()[0].logprobs == [-0.5]
    empty = delta_of([], finished="length")
    assert empty.split() == [empty]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_what_ended_an_answer_is_shown_where_that_is_asked_for(size):
    tokens = TOKENIZER.encode("one two. three")
    detokenizer = Detokenizer(TOKENIZER, ("wo. t",), logprobs=False, include_stop=True)
    assert said_by(detokenizer, tokens, size) == "one two. t"
    for included, said in ((False, "one two. thre"), (True, "one two. three")):
        (*_, last) = tokens
        detokenizer = Detokenizer(
            TOKENIZER, (), logprobs=True, stop_ids=(last,), include_stop=included
        )
        assert said_by(detokenizer, tokens, size) == "one two. three"[: len(said)]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stop_text_among_the_first_tokens_ends_nothing(size):
    tokens = TOKENIZER.encode("ab ab ab")
    first = len(TOKENIZER.encode("ab ab"))
    detokenizer = Detokenizer(TOKENIZER, ("ab",), logprobs=False, min_tokens=first)
    assert said_by(detokenizer, tokens, size) == "ab ab "


def said_by(detokenizer, tokens, size):
    """The text of tokens that come in pieces of a size."""
    deltas = []
    for start in range(0, len(tokens), size):
        end = start + size
        finished = "stop" if end >= len(tokens) else None
        deltas += detokenizer.feed(delta_of(tokens[start:end], finished=finished))
    return "".join(delta.text for delta in deltas)
