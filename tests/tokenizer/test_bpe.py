"""Tokenizer: ids and back, and the files."""

import itertools
import json
import multiprocessing
import pickle
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive_bpe
import numpy as np
import pytest
import tiktoken
import tiktoken.load
from hypothesis import given
from hypothesis import strategies as st

from jaxchat import _bpe
from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import PATTERNS, SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, train_tokenizer
from jaxchat.tokenizer.chat_format import PartParser

TRAINING_TEXT = list(itertools.islice(pydoc_data.topics.topics.values(), 20))
TOKENIZER = train_tokenizer(TRAINING_TEXT, 1024)
TOKENS = [TOKENIZER.decode_bytes([token]) for token in range(1024 - 9)]

BYTES = [bytes([byte]) for byte in range(256)]

texts = st.text(st.characters(exclude_categories=["Cs"]))
# Text with what the pattern looks at: words of the vocabulary, digits, signs, runs of spaces.
pieces = st.sampled_from(
    [
        "the",
        " object",
        "'s",
        "'LL",
        "12345",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "...",
        "é",
        "日本",
        "👩‍🚀",
        "\u017f",
    ]
)
busy_texts = st.lists(pieces, max_size=20).map("".join)
old_texts = st.text(st.characters(exclude_categories=["Cs", "Cn"]))


@given(texts | busy_texts)
def test_text_survives_encoding_and_decoding(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(old_texts | busy_texts)
def test_ids_equal_those_of_the_naive_encoder(text: str) -> None:
    assert TOKENIZER.encode(text) == naive_bpe.encode(text, TOKENS, SPLIT_PATTERN)


@given(st.binary())
def test_any_bytes_can_be_decoded(data: bytes) -> None:
    ids = [TOKENS.index(bytes([byte])) for byte in data]
    assert TOKENIZER.decode_bytes(ids) == data
    assert TOKENIZER.decode(ids) == data.decode("utf-8", errors="replace")


@given(st.lists(st.integers(0, 1024 - 10)))
def test_decoding_joins_the_tokens(ids: list[int]) -> None:
    assert TOKENIZER.decode_bytes(ids) == b"".join(TOKENS[token] for token in ids)


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_special_tokens_in_text_stay_text(name: str) -> None:
    text = f"{name}hello {name}{name}"
    ids = TOKENIZER.encode(text)
    assert max(ids) < TOKENIZER.bos
    assert TOKENIZER.encode_batch([text])[0].tolist() == ids
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_come_after_the_mergeable_ones_in_order() -> None:
    ids = [TOKENIZER.special(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(1024 - 9, 1024))
    assert TOKENIZER.bos == ids[0]
    assert TOKENIZER.decode(ids) == "".join(SPECIAL_TOKENS)
    assert [TOKENIZER.is_ordinary(i) for i in (-1, 0, 1014, 1015, 1023, 1024)] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_an_unknown_special_token_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"'<\|end\|>' is not a special token"):
        TOKENIZER.special("<|end|>")


def test_numbers_are_cut_into_at_most_two_digits() -> None:
    tokenizer = train_tokenizer(["12345 12345 123 345"], 300)
    ids = tokenizer.encode("12345")
    assert [tokenizer.decode([token]) for token in ids] == ["12", "34", "5"]


@given(texts)
def test_token_bytes_count_the_bytes_of_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.token_bytes[ids].sum() == len(text.encode())


def test_token_bytes_are_one_count_per_id() -> None:
    assert TOKENIZER.token_bytes.shape == (1024,)
    assert TOKENIZER.token_bytes.dtype == np.int32
    assert TOKENIZER.token_bytes[-9:].tolist() == [0] * 9
    assert TOKENIZER.token_bytes[:-9].min() == 1


# By tiktoken, with our vocabulary and the pattern.
ENCODINGS = {
    name: (Tokenizer(TOKENS, pattern), Tokenizer(TOKENS, pattern).to_tiktoken())
    for name, pattern in {
        **PATTERNS,
        "another": r"\w+|[^\w\s]+|\s+(?!\S)|\s+",
        "words alone": r"\w+",  # what lies between matches is a piece of its own
        "what stands behind an a": r"(?<=a).|the",
    }.items()
}
each_pattern = pytest.mark.parametrize("name", ENCODINGS)


@each_pattern
@given(text=texts | busy_texts)
def test_ids_equal_those_of_tiktoken(name: str, text: str) -> None:
    ours, theirs = ENCODINGS[name]
    assert ours.encode(text) == theirs.encode_ordinary(text)


@each_pattern
@given(text=texts | busy_texts)
def test_no_pattern_loses_text(name: str, text: str) -> None:
    ours, _ = ENCODINGS[name]
    assert ours.decode(ours.encode(text)) == text
    assert Tokenizer.from_tiktoken(ours.to_tiktoken()).hash == ours.hash


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_ids_of_every_code_point_equal_those_of_tiktoken(pattern: str) -> None:
    # Tokens across a cut before or after a character: their absence shows the cut.
    across = [*(b"a" + byte for byte in BYTES), *(byte + b"b" for byte in BYTES if byte != b"a")]
    ours = Tokenizer([*BYTES, *across], pattern)
    theirs = ours.to_tiktoken()
    for plane in range(0, 0x110000, 0x10000):
        codes = set(range(plane, plane + 0x10000)) - set(range(0xD800, 0xE000))
        text = "".join(f"a{chr(c)}b {chr(c)}1{chr(c)}\n" for c in sorted(codes))
        if ours.encode(text) != theirs.encode_ordinary(text):
            differ = [c for c in codes if _differ(ours, theirs, f"a{chr(c)}b {chr(c)}1{chr(c)}\n")]
            pytest.fail(f"cut differently: {[f'U+{c:04X}' for c in sorted(differ)[:9]]}")


def _differ(ours: Tokenizer, theirs: tiktoken.Encoding, text: str) -> bool:
    return ours.encode(text) != theirs.encode_ordinary(text)


@each_pattern
def test_ids_of_real_text_equal_those_of_tiktoken(name: str) -> None:
    ours, theirs = ENCODINGS[name]
    for text in pydoc_data.topics.topics.values():
        assert ours.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("piece", ["a", "ab", "the", "é", "!", "\n", " \n", "\u0301", "👩‍🚀", " x"])
def test_ids_of_long_runs_equal_those_of_tiktoken(piece: str) -> None:
    ours, theirs = ENCODINGS["jaxchat"]
    text = piece * (100_000 // len(piece))
    assert ours.encode(text) == theirs.encode_ordinary(text)


@pytest.mark.parametrize("piece", ["a", "the", " ", "\n", "!", "日"])
def test_a_million_of_anything_can_be_encoded(piece: str) -> None:
    """Where the work grows with the square of the length, this takes hours."""
    text = piece * 1_000_000
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_every_named_pattern_has_a_scanner() -> None:
    assert set(PATTERNS.values()) <= set(_bpe.scanned_patterns())


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("around", [(None, None), ("<|bos|>", None), ("<|bos|>", "<|user_end|>")])
def test_a_batch_equals_its_texts_one_by_one(
    threads: int | None, around: tuple[str | None, str | None]
) -> None:
    texts = [*TRAINING_TEXT * 20, "", "日本", ""]
    assert sum(map(len, texts)) > 2**20, "too little for the threads to share"
    ids, offsets = TOKENIZER.encode_batch(iter(texts), *around, threads=threads)
    assert (ids.dtype, offsets.dtype, len(offsets)) == (np.uint16, np.int64, len(texts) + 1)
    before, after = ([TOKENIZER.special(name)] if name else [] for name in around)
    for n, text in enumerate(texts):
        expected = [*before, *TOKENIZER.encode(text), *after]
        assert ids[offsets[n] : offsets[n + 1]].tolist() == expected, f"text {n}"
    assert (offsets[0], offsets[-1]) == (0, len(ids))


def test_a_batch_of_nothing_is_empty() -> None:
    ids, offsets = TOKENIZER.encode_batch([])
    assert (ids.tolist(), offsets.tolist()) == ([], [0])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab_size: int, dtype: type) -> None:
    pairs = (a + b for a in BYTES for b in BYTES)
    tokenizer = Tokenizer([*BYTES, *itertools.islice(pairs, vocab_size - 256 - 9)])
    ids, _ = tokenizer.encode_batch(["\x00b"], append="<|output_end|>")
    assert ids.dtype == dtype
    assert ids.tolist() == [256 + ord("b"), vocab_size - 1]


def test_a_batch_can_be_encoded_in_a_forked_process() -> None:
    texts = TRAINING_TEXT * 10
    expected = TOKENIZER.encode_batch(texts, threads=2)[0].sum()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(_encoded_sum, (texts,)).get(timeout=60)
    assert found == expected


def _encoded_sum(texts: list[str]) -> int:
    return int(TOKENIZER.encode_batch(texts, threads=2)[0].sum())


def test_names_of_special_tokens_in_text_are_text_and_others_are_refused() -> None:
    ids = TOKENIZER.encode("".join(SPECIAL_TOKENS))
    assert all(map(TOKENIZER.is_ordinary, ids))
    assert TOKENIZER.decode(ids) == "".join(SPECIAL_TOKENS)
    with pytest.raises(TokenizerError, match="'<script>' is not a special token"):
        TOKENIZER.special("<script>")


def test_only_allowed_special_tokens_are_read_in_text() -> None:
    text = "<|bos|>hi<|user_end|><|bos|>"
    ids = TOKENIZER.encode(text, allowed_special={"<|bos|>"})
    bos = TOKENIZER.bos
    assert ids == [bos, *TOKENIZER.encode("hi<|user_end|>"), bos]
    ids = TOKENIZER.encode(text, allowed_special=SPECIAL_TOKENS)
    assert ids == [bos, *TOKENIZER.encode("hi"), TOKENIZER.special("<|user_end|>"), bos]
    with pytest.raises(TokenizerError, match="'<script>' is not a special token"):
        TOKENIZER.encode(text, allowed_special=["<script>"])


def test_tiktoken_knows_our_special_tokens() -> None:
    theirs = TOKENIZER.to_tiktoken()
    assert theirs.n_vocab == TOKENIZER.vocab_size
    assert theirs.encode("<|user_end|>", allowed_special="all") == [
        TOKENIZER.special("<|user_end|>")
    ]


@given(texts | busy_texts)
def test_a_stream_gives_whole_characters(text: str) -> None:
    stream = PartParser(TOKENIZER)
    pieces = [stream.feed(token)[0]["text"] for token in TOKENIZER.encode(text)]
    assert "".join(pieces) == text
    assert stream.close() == {"type": "text", "text": ""}


def test_a_stream_tells_of_bytes_that_are_no_character() -> None:
    stream = PartParser(TOKENIZER)
    first, second, _ = (TOKENS.index(bytes([byte])) for byte in "日".encode())
    assert [stream.feed(token)[0]["text"] for token in (first, second)] == ["", ""]
    assert stream.close()["text"] == "\ufffd"
    again = (stream.feed(token)[0]["text"] for token in TOKENIZER.encode("again"))
    assert "".join(again) == "again"


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(TokenizerError, match=r"the text .*lone surrogate at character 2"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(TokenizerError, match=r"text 1 .*lone surrogate at character 0"):
        TOKENIZER.encode_batch(["fine", "\udc00"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", 3], "text 1 must be a str, but is int"),
        ("one text", "texts is one str"),
        (5, "not iterable"),
    ],
)
def test_what_is_no_text_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TOKENIZER.encode_batch(texts)


def test_what_is_no_text_is_refused_alone_too() -> None:
    with pytest.raises(TypeError, match="the text must be a str, but is int"):
        TOKENIZER.encode(5)  # type: ignore[arg-type]


def test_a_text_that_a_regular_expression_gives_up_on_is_named() -> None:
    spaces = " " * 1_100_000
    with pytest.raises(TokenizerError, match=r"gave up on text 1 .*: drop that text or cut it up"):
        ENCODINGS["another"][0].encode_batch(["fine", spaces])
    assert TOKENIZER.decode(TOKENIZER.encode(spaces)) == spaces


@pytest.mark.parametrize("bad", [-1, 1024, 2**40])
def test_an_id_outside_the_vocabulary_is_named(bad: int) -> None:
    with pytest.raises(TokenizerError, match=f"token id {bad} is outside the vocabulary of 1024"):
        TOKENIZER.decode([0, bad])


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.hash == TOKENIZER.hash
    assert loaded.vocab_size == TOKENIZER.vocab_size
    assert loaded.bos == TOKENIZER.bos
    for text in TRAINING_TEXT:
        assert loaded.encode(text) == TOKENIZER.encode(text)


def test_saving_replaces_an_older_tokenizer_and_leaves_two_files(tmp_path: Path) -> None:
    train_tokenizer(["other"], 300).save(tmp_path)
    TOKENIZER.save(tmp_path)
    assert Tokenizer.load(tmp_path).hash == TOKENIZER.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer.tiktoken",
    ]


def test_the_ranks_are_in_the_format_of_tiktoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # an empty name turns its cache off
    TOKENIZER.save(tmp_path)
    ranks = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "tokenizer.tiktoken"))
    assert ranks == {token: rank for rank, token in enumerate(TOKENS)}


def test_the_hash_tells_tokenizers_apart() -> None:
    tokens = [bytes([byte]) for byte in range(256)]
    hashes = {
        Tokenizer(tokens).hash,
        Tokenizer(tokens[::-1]).hash,
        Tokenizer([*tokens, b"ab"]).hash,
        Tokenizer(tokens, pattern=r"\w+|\W").hash,
    }
    assert len(hashes) == 4
    assert Tokenizer(tokens).hash == train_tokenizer([], 265).hash


def test_a_tokenizer_can_be_pickled_for_worker_processes() -> None:
    copy = pickle.loads(pickle.dumps(TOKENIZER))
    assert copy.encode("to be or not") == TOKENIZER.encode("to be or not")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (BYTES[1:], "the byte 0x00 is no token"),
        ([*BYTES, b"a"], "rank 256 is empty or equals another"),
        ([*BYTES, b""], "rank 256 is empty or equals another"),
    ],
)
def test_a_vocabulary_that_cannot_work_is_refused(tokens: list[bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(tokens)


def test_a_pattern_that_does_not_compile_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"the pattern '\(' is not valid"):
        Tokenizer(BYTES, pattern="(")


def edit_settings(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def edit_ranks(old: str, new: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.tiktoken"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def write_ranks(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "tokenizer.tiktoken").write_text(text)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no settings": lambda folder: (folder / "tokenizer.json").unlink(),
    "no ranks": lambda folder: (folder / "tokenizer.tiktoken").unlink(),
    "settings are not JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "settings are not an object": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "settings are HF's": lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'),
    "settings are binary": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"),
    "settings are a folder": lambda folder: (
        (folder / "tokenizer.json").unlink(),
        (folder / "tokenizer.json").mkdir(),
    ),
    "ranks are binary": lambda folder: (folder / "tokenizer.tiktoken").write_bytes(b"\xff\xfe"),
    "ranks are empty": write_ranks(""),
    "another format": edit_settings(format="jaxchat-tokenizer-2"),
    "another hash": edit_settings(hash="0" * 64),
    "another pattern": edit_settings(pattern=r"\S+|\s+"),
    "a pattern that does not compile": edit_settings(pattern="("),
    "no pattern": edit_settings(pattern=None),
    "another vocabulary size": edit_settings(vocab_size=1000),
    "other special tokens": edit_settings(special_tokens={"<|endoftext|>": 1015}),
    "a changed token": edit_ranks("IHRoZQ== ", "IHRoZg== "),
    "a changed rank": edit_ranks(" 700\n", " 7000\n"),
    "a rank without token": edit_ranks("IHRoZQ== ", ""),
    "the ranks of another tokenizer": lambda folder: (
        train_tokenizer(["another"], 300).save(folder / "b"),
        (folder / "b" / "tokenizer.tiktoken").replace(folder / "tokenizer.tiktoken"),
    ),
    "ranks: not base64": write_ranks("?? 0\n"),
    "ranks: no ranks": write_ranks("IQ==\n"),
    "ranks: bytes missing": write_ranks("IQ== 0\n"),
    "ranks: an empty line": write_ranks("\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_refused_in_one_sentence(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    TOKENIZER.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no usable tokenizer in {tmp_path}: ")
    assert "\n" not in message
    assert "Train it again" in message


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere: tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path / "nowhere")
