"""Atomic writes: whatever happens, what has its final name is whole."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jaxchat.errors import ArtifactError
from jaxchat.paths import (
    atomic_folder,
    atomic_open,
    home,
    read_json,
    remove,
    runs,
    sha256_file,
    sha256_text,
    sweep,
    write_json,
)


class Boom(Exception):
    pass


@contextmanager
def little_disk(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: the nearest to a full disk without root."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_the_home_given_comes_before_the_environment_and_that_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXCHAT_HOME", str(tmp_path / "environment"))
    assert home(tmp_path / "given") == tmp_path / "given"
    assert home() == tmp_path / "environment"
    monkeypatch.setenv("JAXCHAT_HOME", "")
    assert home() == Path.home() / ".cache" / "jaxchat"
    assert home("~/elsewhere") == Path.home() / "elsewhere"
    assert runs(tmp_path) == tmp_path / "runs"


@pytest.mark.parametrize(("mode", "old", "new"), [("w", "old", "nüw"), ("wb", b"old", b"\x00\xff")])
def test_a_file_has_its_old_content_until_the_block_ends_well(
    tmp_path: Path, mode: str, old: str | bytes, new: str | bytes
) -> None:
    path = tmp_path / "deep" / "file"

    def read() -> str | bytes:
        return path.read_text(encoding="utf-8") if mode == "w" else path.read_bytes()

    with atomic_open(path, mode) as file:
        file.write(old)
        assert not path.exists()
    with atomic_open(path, mode) as file:
        file.write(new)
        file.flush()
        assert read() == old
    assert read() == new
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_keeps_its_old_content_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_open(path) as file:
            file.write("half of the new")
            raise Boom

    with pytest.raises(Boom):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_keeps_its_old_content_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with little_disk(2**20), pytest.raises(OSError, match="too large"), atomic_open(path) as file:
        file.write("x" * 2**21)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_has_its_old_content_until_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as folder:
        (folder / "old").touch()
        assert not path.exists()
    with atomic_folder(path) as folder:
        (folder / "new").touch()
        assert os.listdir(path) == ["old"]
    assert os.listdir(path) == ["new"]
    assert path.stat().st_mode & 0o777 == 0o755
    assert os.listdir(path.parent) == ["folder"]


def test_a_folder_keeps_its_old_content_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as folder:
        (folder / "old").touch()

    def write() -> None:
        with atomic_folder(path) as folder:
            (folder / "new").touch()
            raise Boom

    with pytest.raises(Boom):
        write()
    assert os.listdir(path) == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_remove_takes_files_folders_and_links_but_not_what_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("link", "folder", "file", "never there"):
        remove(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_a_folder_whose_removal_is_cut_short_has_lost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "half").touch()

    def killed(path: object, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(folder)
    assert not folder.exists(), "half a folder still looks like a whole one"
    sweep(tmp_path)
    assert os.listdir(tmp_path) == []


def test_sweep_takes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    def left() -> None:
        with atomic_open(tmp_path / "file"), atomic_folder(tmp_path / "folder"):
            shutil.copytree(tmp_path, tmp_path.parent / "left")  # as SIGKILL would find it
            raise Boom

    with pytest.raises(Boom):
        left()
    found = tmp_path.parent / "left"
    assert len(os.listdir(found)) == 2
    for name in (".hidden", "file.tmp", "done.json"):
        (found / name).touch()
    sweep(found)
    assert sorted(os.listdir(found)) == [".hidden", "done.json", "file.tmp"]
    sweep(found / "never there")


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": "ü"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.json does not exist; run the stage"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_damaged_json_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json is damaged .* delete it") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_hashed_parts_cannot_run_into_each_other() -> None:
    texts = [
        ("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (),
        ("a\x00\x00\x00\x00\x00\x00\x00\x00",), ("a", ""),
    ]  # fmt: skip
    assert len({sha256_text(*parts) for parts in texts}) == len(texts)
    assert sha256_text("ab", "c") == sha256_text("ab", "c")


def test_a_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")
