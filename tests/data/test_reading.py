"""Bytes of files as text: byte order marks, long lines, damage reported as what it is."""

import errno
import gzip
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from jaxchat.cli.serve import read_key
from jaxchat.config import loading
from jaxchat.data.files import compressed, text
from jaxchat.data.files.compressed import Unreadable
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError, explain
from jaxchat.evals.core.bundle import read_bundle, read_examples
from jaxchat.tasks.conversations import Custom
from jaxchat.tasks.persona import read_persona

GOLDEN = Path(__file__).parents[1] / "golden" / "core_bundle"
MARK = b"\xef\xbb\xbf"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
LINE = json.dumps({"text": "naïve", "messages": TALK}).encode() + b"\n"


def pack(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data)
    if suffix.endswith(".zst"):
        return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
    return data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(pack(data, path.name))
    return path


# ---------------------------------------------------------------------------- marks


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_mark_is_taken_off_everywhere(tmp_path: Path, packed: str) -> None:
    plain = write(tmp_path / f"a.txt{packed}", MARK + b"one\ntwo")
    lines = write(tmp_path / f"b.jsonl{packed}", MARK + LINE + MARK + LINE)
    assert list(TextFiles([str(plain)])) == ["one\ntwo"]
    assert list(TextFiles([str(lines)])) == ["naïve", "naïve"]
    assert [Custom([lines]).conversation(n)["messages"] for n in range(2)] == [TALK, TALK]


def test_a_mark_is_taken_off_stdin_toml_bundles_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BytesIO(MARK + b"piped")

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert list(TextFiles(["-"])) == ["piped"]
    persona = write(tmp_path / "ada.toml", MARK + b'name = "Ada"\r\n')
    assert read_persona(persona) == {"name": "Ada"}
    tier = loading.find_tier("cpu")
    assert loading.load(write(tmp_path / "run.toml", MARK + tier.read_bytes())) == loading.load(
        tier
    )
    assert (
        read_key(write(tmp_path / "key", MARK + b"0123456789abcdef" * 4)) == "0123456789abcdef" * 4
    )
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    for path in (p for p in bundle.rglob("*") if p.is_file()):
        path.write_bytes(MARK + path.read_bytes())
    read, expected = read_bundle(bundle), read_bundle(GOLDEN)
    assert [t.label for t in read.tasks] == [t.label for t in expected.tasks]
    for mine, theirs in zip(read.tasks, expected.tasks, strict=True):
        assert read_examples(mine) == read_examples(theirs)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "persona.toml"])
def test_wide_text_is_refused_by_its_name(tmp_path: Path, encoding: str, name: str) -> None:
    path = write(tmp_path / name, LINE.decode().encode(encoding))
    read = read_persona if name.endswith("toml") else lambda p: list(TextFiles([str(p)]))
    with pytest.raises((ArtifactError, ConfigError), match=rf"{name} is UTF-(16|32).*iconv -f"):
        read(path)
    if "jsonl" in name:
        with pytest.raises(ArtifactError, match=rf"{name} is UTF-(16|32)"):
            Custom([path])


def test_a_bundle_in_latin1_is_no_stack_trace(tmp_path: Path) -> None:
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    path = bundle / "eval_data" / "choices" / "because.jsonl"
    path.write_bytes(path.read_bytes() + '{"query": "naïve"}\n'.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"because\.jsonl is not UTF-8 text \(byte \d+\)"):
        read_examples(read_bundle(bundle).tasks[0])


# ---------------------------------------------------------------------------- long lines


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("begin", ["", "x", "xy", "xyz"])
def test_a_line_without_end_comes_in_pieces_of_whole_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, begin: str
) -> None:
    monkeypatch.setattr(text, "CHUNK", 16)
    line = begin + "aäグ🙂" * 40
    found = list(TextFiles([str(write(tmp_path / f"a.txt{packed}", line.encode()))]))
    assert "".join(found) == line
    assert max(len(piece.encode()) for piece in found) <= 2 * 16 + 3


def test_a_character_that_is_cut_off_at_the_end_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "good 🙂".encode()[:-1])
    with pytest.raises(ArtifactError, match=r"a\.txt is not UTF-8 text \(byte 5\)"):
        list(TextFiles([str(path)]))


def test_lines_are_cut_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of text in lines are documents of runs that were begun earlier."""
    monkeypatch.setattr(text, "CHUNK", 30)
    data = b"".join(b"%d" % n * (n % 19) + b"\n" for n in range(200))
    file = io.BytesIO(data)
    old = list(iter(lambda: b"".join(file.readlines(30)).decode(), ""))
    assert list(TextFiles([str(write(tmp_path / "a.txt", data))])) == old


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_record_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in (text, sys.modules["jaxchat.data.files.table"]):
        monkeypatch.setattr(module, "MAX_RECORD", len(LINE))
    path = write(tmp_path / name, LINE + b"\n" + LINE[:-1] + b" \n")
    said = r"line 3 of .*a\.jsonl.* is longer than 0 MiB, the most that one record may have"
    for read in (lambda: list(TextFiles([str(path)])), lambda: Custom([path])):
        with pytest.raises(ArtifactError, match=said):
            read()


# ---------------------------------------------------------------------------- damage


def zstd_frame(window_log: int, payload: bytes = LINE) -> bytes:
    """A frame with one raw block and this window (RFC 8878, 3.1.1)."""
    block = (1 | len(payload) << 3).to_bytes(3, "little") + payload
    return b"\x28\xb5\x2f\xfd\x00" + bytes([window_log - 10 << 3]) + block


@pytest.mark.parametrize("before", [b"", b"\x50\x2a\x4d\x18\x02\0\0\0ab", zstd_frame(20)])
def test_a_window_that_is_too_large_is_reported_with_the_command(
    tmp_path: Path, before: bytes
) -> None:
    path = tmp_path / "my texts.jsonl.zst"
    path.write_bytes(before + zstd_frame(27))
    assert len(list(TextFiles([str(path)]))) == 1 + before.startswith(b"\x28")
    path.write_bytes(before + zstd_frame(31))
    for read in (lambda: list(TextFiles([str(path)])), lambda: Custom([path])):
        with pytest.raises(ArtifactError, match="at most 128 MiB are read") as caught:
            read()
        reported = str(caught.value)
        assert (
            f"zstd -d --long=31 -c {shlex.quote(str(path))} | zstd -19 -o NEW.jsonl.zst" in reported
        )
        assert ("2,048 MiB" in reported) == (not before.startswith(b"\x28"))
        assert "fetch it again" not in reported


@pytest.mark.parametrize("number", range(16))
def test_frames_that_carry_no_text_are_passed_over(tmp_path: Path, number: int) -> None:
    """RFC 8878, 3.1.2: their first four bytes are one of sixteen numbers."""
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(bytes([0x50 + number]) + b"\x2a\x4d\x18\x02\0\0\0ab" + zstd_frame(20))
    with compressed.opened(path) as (content, _):
        assert content.read() == LINE


@pytest.mark.parametrize("first", [0x4F, 0x60])
def test_numbers_beside_theirs_are_no_zstandard(tmp_path: Path, first: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(bytes([first]) + b"\x2a\x4d\x18\x02\0\0\0ab" + zstd_frame(20))
    with pytest.raises(Unreadable, match="is not Zstandard"), compressed.opened(path):
        pass


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the program zstd is not installed")
def test_the_command_that_is_advised_works(tmp_path: Path) -> None:
    given = ["zstd", "-q", "--long=31", "-o", str(tmp_path / "a.jsonl.zst")]
    subprocess.run(given, input=LINE * 9, check=True)
    with pytest.raises(ArtifactError, match="compress it again: ") as caught:
        list(TextFiles([str(tmp_path / "a.jsonl.zst")]))
    command = str(caught.value).partition("compress it again: ")[2]
    subprocess.run(command.replace("zstd", "zstd -q"), shell=True, cwd=tmp_path, check=True)
    assert list(TextFiles([str(tmp_path / "NEW.jsonl.zst")])) == ["naïve"] * 9


@pytest.mark.parametrize(
    ("flag", "size", "window"),
    [(0x20, b"\x07", 7), (0x60, b"\x01\x01", 513), (0xA0, b"\0\0\0\x10", 1 << 28)],
)
def test_the_window_of_a_single_segment_is_its_content(
    tmp_path: Path, flag: int, size: bytes, window: int
) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([flag]) + size + bytes(9))
    assert compressed.zstd_window(path) == window


def damaged_parquet(path: Path, codec: str) -> Path:
    texts = [f"text {n} " * 9 for n in range(900)]
    table = pyarrow.table({"text": texts, "messages": [TALK] * 900})
    parquet.write_table(table, path, compression=codec)
    data = bytearray(path.read_bytes())
    data[60:400] = bytes(byte ^ 0x5A for byte in data[60:400])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "lz4"])
def test_a_damaged_page_names_the_file_and_not_the_home(tmp_path: Path, codec: str) -> None:
    path = damaged_parquet(tmp_path / "page.parquet", codec)
    with pytest.raises(ArtifactError) as caught:
        list(TextFiles([str(path)]))
    reported, code = explain(caught.value, tmp_path / "home") or ("", 0)
    assert code == 1
    assert reported.startswith(f"jaxchat: {path} is damaged (")
    assert "home" not in reported


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.parquet", b"", r"is cut off \(it is empty\)"),
        ("a.parquet", b'{"text": 1}\n' * 9, "is no Parquet file"),
        (
            "a.parquet",
            gzip.compress(b"x", mtime=0),
            r"is no Parquet file; it looks like gzip \(\.gz\)",
        ),
        ("a.parquet", b"PAR1" + bytes(99), "is cut off: no Parquet footer"),
        ("a.txt.gz", b"", r"is cut off \(it is empty\)"),
        ("a.txt.gz", b"plain", "is not gzip; give it a name"),
        (
            "a.txt.zst",
            gzip.compress(b"x", mtime=0),
            r"is not Zstandard; it looks like gzip \(\.gz\)",
        ),
        (
            "a.txt.gz",
            gzip.compress(b"x", mtime=0) + b"more",
            "is damaged: its bytes are not what gzip",
        ),
        ("a.txt", gzip.compress(b"x", mtime=0), r"is not UTF-8 text .*it looks like gzip \(\.gz\)"),
        ("a.jsonl", b"%PDF-1.7\n%\xe2\xe3", "is no JSON object|it looks like a PDF"),
    ],
)
def test_every_failure_is_reported_as_what_it_is(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=said) as caught:
        list(TextFiles([str(path)]))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_disk_that_fails_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = TextFiles.of([write(tmp_path / name, LINE)])

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, *_: int) -> int:
            return 0

        def readinto(self, _: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "open", lambda *_: io.BufferedReader(Failing()))
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read \(Input/output error\)"):
        list(files)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_goes_while_others_are_read_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, LINE)
    files = TextFiles([str(tmp_path)])
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read \(No such file"):
        list(files)


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, "b", None]}), path)
    files = TextFiles([str(path)])
    assert list(files) == ["a", "b"]
    assert files.remarks() == [f"2 rows of {path} have no text (null) and are left out"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pyarrow.array([1, 2]), 'a column "text" of type int64; it must hold text'),
        (pyarrow.array([["a"]]), 'a column "text" of type list'),
        (pyarrow.array([b"\xff"]), "rows 1 to 1 of .* are not all UTF-8 text"),
    ],
)
def test_a_column_of_another_type_is_refused(
    tmp_path: Path, column: pyarrow.Array, said: str
) -> None:
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=said):
        list(TextFiles([str(tmp_path / "a.parquet")]))


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_packed_parquet_and_talks_are_read(tmp_path: Path, packed: str) -> None:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a"], "messages": [TALK]}), sink)
    path = write(tmp_path / f"a.parquet.{packed}", sink.getvalue())
    assert list(TextFiles([str(path)])) == ["a"]
    for talks in (path, write(tmp_path / f"T.JSONL.{packed}", LINE)):
        assert Custom([talks]).conversation(0)["messages"] == TALK


def test_an_error_without_a_file_names_none(tmp_path: Path) -> None:
    reported, code = explain(OSError("Corrupt snappy compressed data."), tmp_path) or ("", 0)
    assert code == 1
    assert "Corrupt snappy compressed data." in reported
    assert "an unnamed file" in reported
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/file")
    reported, _ = explain(gone, tmp_path) or ("", 0)
    assert reported.startswith("jaxchat: /nowhere/file cannot be used")
    assert "--home" not in reported, "it is no file of the home"
