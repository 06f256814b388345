"""Tokenizer: ids and back, and the files."""

import itertools
import json
import pickle
import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import naive_bpe
import numpy as np
import pytest
import tiktoken.load
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, TokenizerError

TRAINING_TEXT = list(itertools.islice(pydoc_data.topics.topics.values(), 20))
TOKENIZER = Tokenizer.train(TRAINING_TEXT, 1024)
TOKENS = [TOKENIZER.decode_bytes([token]) for token in range(1024 - 9)]

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
    assert TOKENIZER.encode_batch([text]) == [ids]
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
    tokenizer = Tokenizer.train(["12345 12345 123 345"], 300)
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


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_batch_equals_its_texts_one_by_one(threads: int) -> None:
    texts = [*TRAINING_TEXT, "", "日本"]
    expected = [TOKENIZER.encode(text) for text in texts]
    assert TOKENIZER.encode_batch(texts, threads=threads) == expected


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
        TOKENIZER.encode("ab\ud800")
    with pytest.raises(TokenizerError, match="lone surrogate at character 0"):
        TOKENIZER.encode_batch(["fine", "\udc00"])


def test_endless_spaces_are_refused_and_very_many_are_not() -> None:
    text = " " * 900_000
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    with pytest.raises(TokenizerError, match="more than 900000 spaces in a row"):
        TOKENIZER.encode("x" + " " * 900_001)


def test_a_long_word_can_be_encoded() -> None:
    text = "ab" * 100_000
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


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
    assert loaded.encode_batch(TRAINING_TEXT) == TOKENIZER.encode_batch(TRAINING_TEXT)


def test_saving_replaces_an_older_tokenizer_and_leaves_two_files(tmp_path: Path) -> None:
    Tokenizer.train(["other"], 300).save(tmp_path)
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
    assert Tokenizer(tokens).hash == Tokenizer.train([], 265).hash


def test_a_tokenizer_can_be_pickled_for_worker_processes() -> None:
    copy = pickle.loads(pickle.dumps(TOKENIZER))
    assert copy.encode("to be or not") == TOKENIZER.encode("to be or not")


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (BYTES[1:], "each of the 256 bytes"),
        ([*BYTES, b"a"], "distinct"),
        ([*BYTES, b""], "not empty"),
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
        Tokenizer.train(["another"], 300).save(folder / "b"),
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
