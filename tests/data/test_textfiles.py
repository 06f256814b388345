"""Texts out of files: what comes back, in which order, and what is refused."""

import gzip
import io
import json
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from jaxchat.data.files import text, textfiles
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError


def write_jsonl(path, *texts):
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", "two", "thrée\r\n")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.txt").write_text("five")
    (tmp_path / "ignored.md").write_text("no")
    write_parquet(tmp_path / "c.parquet", text=["four", None], other=[1, 2])
    files = TextFiles([str(tmp_path)])
    assert list(files) == ["one\n", "two", "thrée\r\n", "four", "five"]
    assert files.done == files.size > 0
    assert list(files) == list(files)  # again from the start


def test_progress_moves_within_files(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", *["x" * 90] * 10)
    write_parquet(tmp_path / "b.parquet", text=["y"] * 10)
    monkeypatch.setattr(textfiles, "ROWS", 5)
    files = TextFiles([str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")])
    seen = [files.done for _ in files]
    first, size = (tmp_path / "a.jsonl").stat().st_size, files.size
    assert seen[:10] == [first * n // 10 for n in range(1, 11)]
    assert seen[10:] == [first + (size - first) // 2] * 5 + [size] * 5


def test_long_plain_text_comes_in_pieces_cut_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "CHUNK", 10)
    (tmp_path / "a.txt").write_bytes("äöü\r\nsecond line\nthird\n\nend".encode())
    texts = list(TextFiles([str(tmp_path / "a.txt")]))
    assert "".join(texts) == "äöü\r\nsecond line\nthird\n\nend"
    assert len(texts) > 1
    assert all(text.endswith("\n") for text in texts[:-1])


def test_stdin(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"piped\ntext")

    monkeypatch.setattr(sys, "stdin", Stdin)
    files = TextFiles(["-"])
    assert files.size == 0
    assert list(files) == ["piped\ntext"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"txt": "a"}\n', "line 2 of .* no JSON object"),
        (b'{"text": 3}\n', "line 2"),
        (b'["text"]\n', "line 2"),
        (b"nonsense\n", "line 2"),
        (b'{"text": "\\ud800"}\n', "line 2 of .* valid Unicode"),
        (b'{"text": "\xff"}\n', r"not UTF-8 text \(byte 36\)"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good", "id": 1}\n' + line)
    with pytest.raises(ArtifactError, match=sentence):
        list(TextFiles([str(path)]))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\n\xe4\n")
    with pytest.raises(ArtifactError, match=r"a\.txt is not UTF-8 text \(byte 4\)"):
        list(TextFiles([str(tmp_path / "a.txt")]))


def test_parquet_without_text_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", words=["a"])
    (tmp_path / "b.parquet").write_bytes(b"nonsense")
    for name in ("a", "b"):
        said = {"a": r'has no column "text", only words', "b": "is no Parquet file .*magic bytes"}
        with pytest.raises(ArtifactError, match=rf"{name}\.parquet {said[name]}"):
            list(TextFiles([str(tmp_path / f"{name}.parquet")]))


def test_what_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="missing does not exist"):
        TextFiles([str(tmp_path / "missing")])
    with pytest.raises(ConfigError, match=r"holds no \.txt, \.jsonl or \.parquet file"):
        TextFiles([str(tmp_path)])


def test_hidden_files_of_a_folder_do_not_count(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in ("a.txt", ".b.txt", ".git/c.txt"):
        (tmp_path / name).write_text(name)
    assert list(TextFiles([str(tmp_path)])) == ["a.txt"]
    assert list(TextFiles([str(tmp_path / ".b.txt")])) == [".b.txt"]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == "gz":
        return gzip.compress(data)
    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_lines_come_back(tmp_path, suffix):
    write_jsonl(tmp_path / "plain.jsonl", *[f"täxt {n}\n" for n in range(1_000)])
    data = (tmp_path / "plain.jsonl").read_bytes()
    packed = tmp_path / f"a.jsonl.{suffix}"
    packed.write_bytes(compress(data[:5_000], suffix) + compress(data[5_000:], suffix))
    files = TextFiles([str(packed)])
    assert list(files) == list(TextFiles([str(tmp_path / "plain.jsonl")]))
    seen = [files.done for _ in files]
    assert 0 < seen[0] <= seen[-1] <= files.done == packed.stat().st_size
    assert len(list(TextFiles([str(tmp_path)]))) == 2_000, "a folder's compressed files count too"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut off", "other bytes", "no such format"])
def test_damaged_compressed_lines_are_refused(tmp_path, suffix, damage):
    path = tmp_path / f"a.jsonl.{suffix}"
    noise = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 9_000)))
    data = bytearray(compress(json.dumps({"text": noise}).encode() + b"\n", suffix))
    if damage == "cut off":
        said = r"is cut off \(.*\); fetch"
        del data[-9:]  # of gzip only the checksum and a little; every line is there
    elif damage == "other bytes":  # what they decompress to is a bad line, if it is anything
        said = r"is damaged: its bytes are not what|line 1"
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    else:
        said = "is not (gzip|Zstandard); give it a name that ends in what it is"
        data[:] = b'{"text": "not compressed"}\n'
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=said) as caught:
        list(TextFiles([str(path)]))
    assert path.name in str(caught.value)
