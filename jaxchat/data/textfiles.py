"""Texts out of files: plain text, JSON lines with a field `text`, Parquet with a column `text`.

JSON lines may be compressed. Texts are read as they are asked for, never held all at once.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from jaxchat.config import ConfigError
from jaxchat.home import ArtifactError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
STDIN = "-"
CHUNK = 1 << 20  # bytes of plain text in one piece, cut at a line's end
ROWS = 1_024  # of a Parquet file at a time


class TextFiles:
    """The texts of files and of folders' files, in the order of their names; "-" is stdin.

    Attributes:
        paths: the files; None is stdin.
        sizes: bytes of each of `paths`; 0 for stdin.
        size: bytes of all files; 0 when stdin is among them.
        done: bytes of files read so far, while iterating.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Raises ConfigError for what does not exist or cannot hold texts."""
        self.paths = [path for name in names for path in _expand(name)]
        self.sizes = [0 if path is None else path.stat().st_size for path in self.paths]
        self.size = sum(self.sizes) if None not in self.paths else 0
        self.done = 0

    def __iter__(self) -> Iterator[str]:
        """The texts. Raises ArtifactError, naming the file, for one that cannot be read."""
        self.done = 0
        for path in self.paths:
            before = self.done
            for text, position in _read(path):
                self.done = before + position
                yield text
            self.done = before + (path.stat().st_size if path else 0)


def _below(folder: Path) -> Iterator[Path]:
    """The texts below a folder, in any order; not hidden ones, nor those of hidden folders.

    Of 400,000 files, os.scandir takes a tenth of the time of Path.rglob: it asks for none of them.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.endswith(SUFFIXES) and entry.is_file():
                    yield Path(entry.path)


def _expand(name: str) -> list[Path | None]:
    """The files that a name stands for; None is stdin."""
    path = Path(name)
    if name == STDIN:
        return [None]
    if path.is_dir():
        found = sorted(_below(path))
        if not found:
            raise ConfigError(f"{path} holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file.")
        return list(found)
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name files, folders of files, or - for stdin.")
    return [path]


def _read(path: Path | None) -> Iterator[tuple[str, int]]:
    """Texts, each with the bytes of the file that have been read with it."""
    if path is None:
        yield from _read_plain(sys.stdin.buffer, "stdin")
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif path.name.endswith((".gz", ".zst")):
        yield from _read_compressed(path)
    else:
        with path.open("rb") as file:
            read = _read_lines if path.suffix == ".jsonl" else _read_plain
            yield from read(file, str(path))


def _read_plain(file: IO[bytes], name: str) -> Iterator[tuple[str, int]]:
    position = 0
    while lines := file.readlines(CHUNK):
        data = b"".join(lines)
        yield _decode(data, name, position), position + len(data)
        position += len(data)


def _read_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[str, int]]:
    position = 0
    for number, line in enumerate(file, 1):
        text = _decode(line, name, position)
        position += len(line)
        if text.isspace():
            continue
        try:
            value = json.loads(text)["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            value = None
        if not isinstance(value, str) or not _is_unicode(value):
            raise ArtifactError(
                f'line {number} of {name} is no JSON object whose "text" is valid Unicode; mend '
                "the file, or leave it out."
            )
        yield value, position


def _read_compressed(path: Path) -> Iterator[tuple[str, int]]:
    """JSON lines out of gzip or Zstandard."""
    try:
        with path.open("rb") as packed, _decompressed(packed, path) as file:
            for text, _ in _read_lines(file, str(path)):
                yield text, packed.tell()
    except (OSError, EOFError, zlib.error) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} is damaged or cut off ({reason}); fetch it again, or leave it out."
        ) from error


def _decompressed(packed: IO[bytes], path: Path) -> gzip.GzipFile | io.BufferedReader:
    if path.suffix == ".gz":
        return gzip.open(packed)
    import pyarrow

    # It tells a file that was cut off, as the package zstandard does not.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed), "zstd")
    return io.BufferedReader(stream, CHUNK)


def _is_unicode(text: str) -> bool:
    r"""Whether no surrogate stands alone, as JSON's \ud800 does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(data: bytes, name: str, position: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"{name} is not UTF-8 text (byte {position + error.start}); convert it, or leave it "
            "out."
        ) from error


def _read_parquet(path: Path) -> Iterator[tuple[str, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows, size, done = file.metadata.num_rows, path.stat().st_size, 0
            for group in range(file.metadata.num_row_groups):  # else the whole file is buffered
                for batch in file.iter_batches(ROWS, [group], columns=["text"]):
                    done += batch.num_rows
                    for value in batch.column("text").cast(pyarrow.large_string()).to_pylist():
                        if value is not None:
                            yield value, size * done // rows
    except (pyarrow.ArrowException, KeyError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f'{path} is no Parquet file with a column "text" ({reason}); mend it, or leave it out.'
        ) from error
