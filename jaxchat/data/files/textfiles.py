"""Texts from files: plain text, JSON lines with a field `text`, Parquet with a column `text`.

All may be compressed (.gz, .zst). Texts are read as they are asked for, never held all at once;
which files are read, and what is wrong with one, `jaxchat.data.files` says.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxchat.data.files.compressed import Unreadable, opened
from jaxchat.data.files.folders import STDIN, SUFFIXES, Found, Listing, exactly, find, shown
from jaxchat.data.files.parquet import open_parquet, text_column
from jaxchat.data.files.text import MAX_RECORD, is_unicode, pieces, read_lines
from jaxchat.errors import first_line

__all__ = ["STDIN", "SUFFIXES", "TextFiles"]

COLUMN = "text"
ROWS = 1_024  # of a Parquet file at a time


class TextFiles:
    """The texts of files and of folders' files, in the order of their names; "-" is stdin."""

    def __init__(self, names: Iterable[str] | Listing) -> None:
        """Raises ConfigError for what does not exist or cannot hold texts."""
        self.listing = names if isinstance(names, Listing) else find(names)
        self.paths = [file.path for file in self.listing.files]  # None: stdin
        self.sizes = [file.size for file in self.listing.files]  # bytes; 0 for stdin
        self.size = sum(self.sizes) if None not in self.paths else 0  # 0 with stdin
        self.done = 0  # bytes of files read so far, while iterating
        self.nulls: Counter[str] = Counter()  # file -> rows without a text that were left out

    @classmethod
    def of(cls, paths: Iterable[Path]) -> TextFiles:
        """The texts of exactly these files. Raises OSError for one that is gone."""
        return cls(exactly(paths))

    def __iter__(self) -> Iterator[str]:
        """The texts. Raises Unreadable, naming the file, for one that cannot be read."""
        self.done = 0
        self.nulls.clear()
        for file in self.listing.files:
            before = self.done
            for text, position in _read(file):
                self.done = before + position
                if text is None:
                    self.nulls[str(file.path)] += 1
                else:
                    yield text
            self.done = before + file.size

    def remarks(self) -> list[str]:
        """A sentence for each file of which rows were left out, when it has been read."""
        return [
            f"{count:,} rows of {shown(name)} have no text (null) and are left out"
            for name, count in self.nulls.items()
        ]


def _read(file: Found) -> Iterator[tuple[str | None, int]]:
    """Texts (None: a row without), each with the bytes of the file that have been read with it."""
    if file.path is None:
        yield from pieces(sys.stdin.buffer, "stdin")
    elif file.kind.startswith(".parquet"):
        yield from _read_parquet(file.path)
    elif file.kind.startswith(".jsonl"):
        for number, line, position in read_lines(file.path):
            yield _text_of(line, number, file.path), position
    else:
        with opened(file.path) as (content, packed):
            for text, position in pieces(content, str(file.path)):
                yield text, position if content is packed else packed.tell()


def _text_of(line: str, number: int, path: Path) -> str:
    try:
        value = json.loads(line)[COLUMN]
    except (ValueError, TypeError, KeyError, RecursionError):
        value = None
    if not isinstance(value, str) or not is_unicode(value):
        raise Unreadable(
            f'line {number} of {path} is no JSON object whose "{COLUMN}" is valid Unicode; mend '
            "the file, or leave it out."
        )
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str | None, int]]:
    with open_parquet(path) as file:
        text_column(file, path, COLUMN)
        rows, size, done = file.metadata.num_rows, path.stat().st_size, 0
        for group in range(file.metadata.num_row_groups):  # else the whole file is buffered
            for batch in file.iter_batches(ROWS, [group], columns=[COLUMN]):
                for value in _texts_of(batch.column(COLUMN), done, path):
                    yield value, size * (done + batch.num_rows) // rows
                done += batch.num_rows


def _texts_of(column: Any, first: int, path: Path) -> list[str | None]:
    """The values of some rows; `first` is the number of rows before them."""
    import pyarrow
    from pyarrow import compute

    try:
        longest = compute.max(compute.binary_length(column.cast(pyarrow.large_binary()))).as_py()
        if (longest or 0) > MAX_RECORD:
            raise Unreadable(
                f"a text in rows {first + 1} to {first + len(column)} of {path} is longer than "
                f"{MAX_RECORD >> 20} MiB, the most that one record may have; split it into several."
            )
        values: list[str | None] = column.cast(pyarrow.large_string()).to_pylist()
    except (UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise Unreadable(
            f"rows {first + 1} to {first + len(column)} of {path} are not all UTF-8 text "
            f"({first_line(error)}); mend the file, or leave it out."
        ) from error
    return values
