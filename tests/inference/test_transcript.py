"""A completion as text: the same whole or in pieces, whatever ids a model comes up with."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from jaxchat.inference.transcript import PartStream, Scribe, as_text, printable
from jaxchat.tokenizer import SPECIAL_TOKENS
from jaxchat.tokenizer.chat_format import parse_completion


def write_all(scribe, pieces):
    return "".join(map(scribe.write, pieces))


def said(tokenizer, *parts):
    """Ids of texts and special tokens."""
    ids = []
    for part in parts:
        ids += [tokenizer.special(part)] if part in SPECIAL_TOKENS else tokenizer.encode(part)
    return ids


def call(tokenizer):
    return said(
        tokenizer,
        *("<|python_start|>", "37 * 24", "<|python_end|>"),
        *("<|output_start|>", "888", "<|output_end|>", "The answer is 888.", "<|assistant_end|>"),
    )


def test_a_call_and_its_result_stand_in_brackets(tokenizer):
    parts = parse_completion(call(tokenizer), tokenizer)
    assert as_text(parts) == "[calculator: 37 * 24 = 888]\nThe answer is 888."


def test_a_call_is_seen_before_its_result(tokenizer):
    stream, scribe, ids = PartStream(tokenizer), Scribe(), call(tokenizer)
    at = ids.index(tokenizer.special("<|python_end|>"))
    assert write_all(scribe, stream.feed(ids[: at + 1])) == "[calculator: 37 * 24"
    assert write_all(scribe, stream.feed(ids[at + 1 :])) == " = 888]\nThe answer is 888."
    assert stream.close() == []
    assert scribe.close() == ""


def test_a_call_is_announced_and_may_be_painted(tokenizer):
    stream, scribe = PartStream(tokenizer), Scribe("<", ">")
    ids = [*said(tokenizer, "So ", "<|python_start|>", "<|python_end|>"), *call(tokenizer)]
    pieces = stream.feed(ids)
    announced = [piece["type"] for piece in pieces if not piece["text"]]
    assert announced == ["python", "python", "python_output"]
    text = write_all(scribe, pieces) + scribe.close()
    assert text == "So <[calculator: ]>\n<[calculator: 37 * 24 = 888]>\nThe answer is 888."


def test_an_answer_that_was_cut_off_is_closed(tokenizer):
    ids = said(tokenizer, "Let me see: ", "<|python_start|>", "37 *")
    assert as_text(parse_completion(ids, tokenizer)) == "Let me see: [calculator: 37 *]"


def test_a_character_of_several_tokens_comes_whole(tokenizer):
    stream = PartStream(tokenizer)
    ids = tokenizer.encode("é€😀")
    assert len(ids) > 3
    pieces = [piece for token in ids for piece in stream.feed([token])]
    assert [piece["text"] for piece in pieces] == ["é", "€", "😀"]


@given(data=st.data())
def test_pieces_join_to_the_whole(tokenizer, data):
    token = st.one_of(
        st.integers(0, tokenizer.vocab_size - 1),
        st.sampled_from([tokenizer.special(name) for name in SPECIAL_TOKENS]),
        st.sampled_from(tokenizer.encode("é😀 1")),
    )
    chunks = data.draw(st.lists(st.lists(token, max_size=6), max_size=8))
    stream, scribe = PartStream(tokenizer), Scribe()
    texts = [write_all(scribe, stream.feed(chunk)) for chunk in chunks]
    texts += [write_all(scribe, stream.close()), scribe.close()]
    whole = parse_completion([token for chunk in chunks for token in chunk], tokenizer)
    assert "".join(texts) == as_text(whole)


@given(st.text())
def test_nothing_that_steers_a_terminal_is_printed(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(c in "\t\n" or unicodedata.category(c) != "Cc" for c in shown)
    assert printable("caf\xe9\xa0\u4e2d\x1b[2J") == "caf\xe9\xa0\u4e2d\ufffd[2J"
