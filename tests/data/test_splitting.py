"""One file of text alone: its end is held out."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.own import InputFile, divided, local_inputs, with_held_out
from jaxchat.errors import ConfigError

ROW = 9
LINES = [f"line {number} of the only file" for number in range(400)]


def write(folder: Path, kind: str) -> Path:
    """The lines as documents of a file, or as its lines."""
    path = folder / f"only.{kind}"
    documents = "".join(json.dumps({"text": line + "\n"}) + "\n" for line in LINES)
    if kind == "txt":
        path.write_text("".join(f"{line}\n" for line in LINES))
    elif kind == "jsonl":
        path.write_text(documents)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(documents.encode()))
    else:
        table = pyarrow.table({"text": [line + "\n" for line in LINES]})
        pyarrow.parquet.write_table(table, path)
    return path


def only(path: Path) -> InputFile:
    (found,) = local_inputs(path, ROW)
    return found


def split_file(file: InputFile, folder: Path) -> list[InputFile]:
    return with_held_out([file], folder, ROW)


def texts(split: list[InputFile]) -> list[str]:
    return ["".join(TextFiles(map(str, one.paths))) for one in split]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("named", ["the file", "its folder"])
def test_the_last_twentieth_of_the_only_file_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, named: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    path = write(source, kind)
    split = split_file(only(path if named == "the file" else source), tmp_path / "split")
    training, held_out = texts(split)
    assert training + held_out == "".join(f"{line}\n" for line in LINES), "something was lost"
    assert training.endswith("\n"), "cut within a line"
    assert len(held_out) == pytest.approx(len(training) / 19, rel=0.1)
    assert capsys.readouterr().out == (
        f"only.{kind} is the only file of text, so it is split: its first {len(training):,} "
        f"characters are trained on, its last {len(held_out):,} are held out\n"
    )


def test_a_split_that_is_whole_is_kept_and_another_file_is_split_again(tmp_path: Path) -> None:
    path, folder = write(tmp_path, "jsonl"), tmp_path / "split"
    first = split_file(only(path), folder)
    made = folder.stat().st_ino
    assert split_file(only(path), folder) == first
    assert folder.stat().st_ino == made
    (folder / "heldout.jsonl").write_text("")
    assert split_file(only(path), folder) == first
    with path.open("a") as file:
        file.write('{"text": "more"}\n')
    assert texts(split_file(only(path), folder))[1].endswith("more")


@pytest.mark.parametrize(
    ("documents", "held_out", "expected"),
    [
        (["aaaa", "bbbb", "cc"], 2, (["aaaa", "bbbb"], ["cc"])),
        (["aaaa", "bbbb", "cc"], 3, (["aaaa", "bbb"], ["b", "cc"])),  # b is more than 3
        (["aaaa", "bbbb", "cc"], 4, (["aaaa"], ["bbbb", "cc"])),
        (["one\ntwo\nthree"], 4, (["one\ntwo\n"], ["three"])),
        (["no line at all"], 4, (["no line at"], [" all"])),
        (["\u00e9\U0001f600"], 1, (["\u00e9"], ["\U0001f600"])),
    ],
)
def test_it_is_cut_between_documents_else_between_lines(
    documents: list[str], held_out: int, expected: tuple[list[str], list[str]]
) -> None:
    training = sum(map(len, documents)) - held_out
    parts: tuple[list[str], list[str]] = [], []
    for part, text in divided(documents, training, held_out):
        parts[part].append(text)
    assert parts == expected


@pytest.mark.parametrize("content", ["", "a"])
def test_text_too_short_to_be_split_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ConfigError, match=r"a\.txt holds \d characters of text, too few"):
        split_file(only(tmp_path / "a.txt"), tmp_path / "split")
    assert not (tmp_path / "split").exists()
