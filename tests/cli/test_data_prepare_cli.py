"""`jaxchat data prepare`: what it prints, resumes and refuses."""

import json
from pathlib import Path

import pytest

from jaxchat.cli.main import main, parse
from jaxchat.data.shard_folder import ShardFolder
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.tokenizer import Tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The arguments that name a folder of text, a tokenizer and where to write."""
    (tmp_path / "text").mkdir()
    for name in ("a", "b", "c"):
        lines = (json.dumps({"text": f"{name} {n} and some more words"}) + "\n" for n in range(400))
        (tmp_path / "text" / f"{name}.jsonl").write_text("".join(lines))
    Tokenizer([bytes([byte]) for byte in range(256)]).save(tmp_path / "tokenizer")
    names = {"--data-dir": "text", "--tokenizer": "tokenizer", "--out": "out"}
    return [part for key, value in names.items() for part in (key, str(tmp_path / value))]


def run(*arguments: str) -> int:
    args = parse(["data", "prepare", *arguments])
    args.home = args.out.parent / "home"
    code: int = args.run_command(args)
    return code


def test_a_folder_of_text_becomes_shards(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*folders, "--row-tokens", "33", "--workers", "2") == 0
    folder = ShardFolder(tmp_path / "out")
    assert (len(folder), folder.manifest.row_tokens, folder.manifest.validation) == (3, 33, 2)
    read, training, held_out, shards = capsys.readouterr().out.splitlines()
    assert read == "texts: read 3 .jsonl"
    assert training.startswith("training  800 documents of 19,780 tokens")
    assert " kept in " in training
    assert held_out.startswith("held out  400 documents of 9,890 tokens")
    assert held_out.endswith("(c.jsonl)")
    assert shards.startswith(f"3 shards in {tmp_path / 'out'}, 0 of them were there already; ")
    run(*folders, "--row-tokens", "33")
    assert "3 of them were there already" in capsys.readouterr().out


def test_other_rows_in_the_same_folder_are_refused_with_what_differs(folders: list[str]) -> None:
    run(*folders, "--row-tokens", "33")
    with pytest.raises(ArtifactError, match="row_tokens: 33, now 65"):
        run(*folders, "--row-tokens", "65")


def test_a_file_with_another_name_is_the_same_text_and_another_text_is_reported(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*folders, "--row-tokens", "33")
    (tmp_path / "text" / "b.jsonl").rename(tmp_path / "text" / "b2.jsonl")
    (tmp_path / "text").rename(tmp_path / "moved")
    folders[1] = str(tmp_path / "moved")
    run(*folders, "--row-tokens", "33")
    assert "3 of them were there already" in capsys.readouterr().out
    (tmp_path / "moved" / "a.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(ArtifactError, match=r"something else .*input 1: a\.jsonl"):
        run(*folders, "--row-tokens", "33")


def test_one_file_alone_is_split(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders[1] = str(tmp_path / "text" / "a.jsonl")
    for there in (0, 2):
        run(*folders, "--row-tokens", "33")
        reported = capsys.readouterr().out
        assert "a.jsonl is the only file of text, so it is split" in reported
        assert f"2 shards in {tmp_path / 'out'}, {there} of them were there already" in reported


def test_a_folder_without_text_is_refused(folders: list[str], tmp_path: Path) -> None:
    for path in (tmp_path / "text").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"text holds no \.txt"):
        run(*folders)


@pytest.mark.parametrize(("option", "value"), [("--row-tokens", "1"), ("--workers", "0")])
def test_numbers_that_make_no_sense_are_refused(
    folders: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*folders, option, value)
    assert f"'{value}' is not a whole number from" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--tokenizer", "--out"])  # --data-dir may be one file
@pytest.mark.parametrize("under", [False, True])
def test_a_file_where_a_folder_is_meant_is_named(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, under: bool
) -> None:
    """It advised another --home, with which the fault has nothing to do."""
    file = tmp_path / "file"
    file.write_text("no folder")
    path = file / "below" if under else file
    words = ["data", "prepare", "--home", str(tmp_path / "home"), *folders, flag, str(path)]
    assert main(words) == 2
    reported = capsys.readouterr().err
    which = f" is under {file}, which" if under else ""
    assert reported == (
        f"jaxchat: {flag} {path}{which} is a file; it must be a folder: name another.\n"
    )
