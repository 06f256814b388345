"""Which files names stand for: capitals, links, circles, what is left out, what is refused."""

import os
from pathlib import Path

import pytest

from jaxchat.data.files.folders import find, kind_of, shown
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.errors import ConfigError


def names(folder: Path) -> list[str]:
    return [f.path.relative_to(folder).as_posix() for f in find([str(folder)]).files if f.path]


def test_capitals_are_taken_and_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "B.JSONL", "e.json", "f.csv", "README", ".hidden.txt"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    (tmp_path / "C.TXT").write_text("plain")
    os.mkfifo(tmp_path / "pipe.txt")
    listing = find([str(tmp_path)])
    assert [file.kind for file in listing.files] == [".jsonl", ".txt", ".jsonl"]
    assert listing.summary() == (
        "texts: read 2 .jsonl, 1 .txt; left out 1 .csv (not a text format: f.csv), 1 .json (not a "
        "text format: e.json), 1 hidden (.hidden.txt), 1 that is no regular file (pipe.txt), 1 "
        "without an ending (not a text format: README)"
    )
    assert list(TextFiles([str(tmp_path)])) == ["x", "plain", "x"], "B.JSONL is read as JSON lines"
    assert list(TextFiles([str(tmp_path / "B.JSONL")])) == ["x"], "its braces were text"


def test_links_are_followed_each_real_file_once_and_circles_named(tmp_path: Path) -> None:
    texts, other = tmp_path / "texts", tmp_path / "other"
    for folder in (texts / "sub", other / "deep"):
        folder.mkdir(parents=True)
    for path in (texts / "b.txt", texts / "sub/c.txt", other / "d.txt", other / "deep/e.txt"):
        path.write_text(path.stem)
    (texts / "a.txt").symlink_to(texts / "b.txt")  # a second name, and the first in the order
    (texts / "more").symlink_to(other)
    (texts / "twice").symlink_to(other)
    (texts / "alone.txt").symlink_to(other / "deep" / "e.txt")
    (texts / "gone.txt").symlink_to("nowhere.txt")
    (texts / "self").symlink_to("self")
    (texts / "sub" / "up").symlink_to("..")
    (other / "back").symlink_to(texts)
    os.link(texts / "b.txt", texts / "z.txt")
    assert names(texts) == ["alone.txt", "b.txt", "more/d.txt", "sub/c.txt"]
    assert list(TextFiles([str(texts)])) == ["e", "b", "d", "c"]
    reported = find([str(texts)]).summary()
    assert "1 link that leads nowhere (gone.txt)" in reported
    assert "2 links that lead in a circle (self, sub/up)" in reported
    twice = "a.txt, more/back, more/deep/e.txt, and 2 more"
    assert f"5 second names of files or folders ({twice})" in reported


def test_a_name_that_is_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    given = [str(tmp_path / "a.txt"), str(tmp_path), str(tmp_path)]
    assert list(TextFiles(given)) == ["a"]
    assert "2 second names" in find(given).summary()


@pytest.mark.parametrize("name", ["file.csv", "file.json", "file", "file.txt.bz2", "file.gz"])
def test_what_is_named_and_not_known_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a,b\n")
    with pytest.raises(ConfigError, match=rf"{name} is not of a kind that is read as text.*stdin"):
        TextFiles([str(tmp_path / name)])


def test_a_folder_with_other_files_alone_says_which(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"holds no \.txt.*left out are 1 \.csv .*f\.csv\)\.$"):
        TextFiles([str(tmp_path)])
    (tmp_path / "dead.txt").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"dead\.txt is a link that leads nowhere"):
        TextFiles([str(tmp_path / "dead.txt")])


def test_a_shells_pipe_is_read_as_plain_text(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"through a pipe")
    os.close(write)
    try:
        assert list(TextFiles([f"/dev/fd/{read}"])) == ["through a pipe"]
    finally:
        os.close(read)


def test_names_order_as_paths_do_and_need_not_be_unicode(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.txt")
    for name in ("a/x.txt", "a.txt", "a b.txt", odd):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown(name))
    found = sorted(p for p in tmp_path.rglob("*.txt"))
    assert [tmp_path / name for name in names(tmp_path)] == found
    assert shown(odd) == r"\xff.txt"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.B.Jsonl.GZ", ".jsonl.gz"), ("x.txt/file", ""), ("a.txt.", ""), (".txt", ".txt"),
     ("a.parquet.zst", ".parquet.zst"), ("a.gz", ""), ("", "")],
)  # fmt: skip
def test_a_kind_is_the_ending_of_a_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind
