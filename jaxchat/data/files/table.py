"""Random access to the rows of local files: Parquet as the hub has it, or JSON lines.

A JSON file's lines are found once and parsed when asked for. A Parquet file's named columns stay
in memory as Arrow has them (about the size of their text), and a row becomes Python's when asked
for.
"""

from __future__ import annotations

import array
import bisect
import itertools
import json
import mmap
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jaxchat.data.files import folders
from jaxchat.data.files.compressed import COMPRESSED, opened, refused
from jaxchat.data.files.parquet import open_parquet
from jaxchat.data.files.text import MARK, MAX_RECORD, decode, mark_length, too_long
from jaxchat.errors import ArtifactError, ConfigError


class RowError(ArtifactError):
    """An invalid row; `what` says where and why."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. Mend the file, or download it again.")
        self.what = what


class Row:
    """One row: its fields, and its place, for messages."""

    def __init__(self, value: Any, where: Callable[[], str]) -> None:
        """`where`: "line 7 of train.jsonl"; asked only when something is wrong."""
        self.value = value
        self.where = where

    def fail(self, what: str) -> NoReturn:
        """Raises RowError: this row `what`."""
        raise RowError(f"{self.where()} {what}")

    def text(self, field: str) -> str:
        """A field that must be text."""
        value = self.get(field)
        if not isinstance(value, str):
            self.fail(f"has a {field} of type {_kind(value)}; it must be text")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that must be a list of texts, at least one."""
        value = self.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            self.fail(f"has {field} = {value!r:.60}; it must be a list of texts")
        return tuple(value)

    def number(self, field: str) -> int:
        """A field that must be a whole number."""
        value = self.get(field)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"has {field} = {value!r:.60}; it must be a whole number")
        return value

    def inner(self, field: str) -> Row:
        """A field that must be an object with fields of its own."""
        value = self.get(field)
        if not isinstance(value, dict):
            self.fail(f"has a {field} of type {_kind(value)}; it must be an object with fields")
        return Row(value, lambda: f"{self.where()}, in {field},")

    def get(self, field: str) -> Any:
        """A field that must be there."""
        if not isinstance(self.value, dict):
            self.fail(f"is of type {_kind(self.value)}; it must be an object with fields")
        if field not in self.value:
            self.fail(f"has no field {field!r}, only {', '.join(map(str, self.value)) or 'none'}")
        return self.value[field]


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


class Table:
    """The rows of several files, one file after the other."""

    def __init__(
        self, paths: Iterable[Path], columns: Sequence[str], optional: Sequence[str] = ()
    ) -> None:
        """Opens files of which `columns` are read, and those of `optional` that are there.

        Raises ConfigError for no file and for one that does not exist or has another suffix,
        ArtifactError for one that cannot be read or lacks a column.
        """
        self._files = [_open(Path(path), columns, optional) for path in paths]
        if not self._files:
            raise ConfigError(f"no file is given; give files with {', '.join(columns)}.")
        self._ends = list(itertools.accumulate(map(len, self._files)))

    @property
    def unread(self) -> list[tuple[str, int]]:
        """Columns of Parquet files that are not read, and the rows they have."""
        return [(name, len(file)) for file in self._files for name in file.unread]

    def __len__(self) -> int:
        """Rows of all files."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        """A row. Raises IndexError outside the table, RowError for one that is not JSON."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a table of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number]
        local = index - (self._ends[number] - len(file))
        return file.row(local)


def _open(path: Path, columns: Sequence[str], optional: Sequence[str]) -> _Lines | _Parquet:
    if not path.is_file():
        raise ConfigError(
            f"{path} is no file; name a {', '.join(folders.TALKS[:-1])} or {folders.TALKS[-1]}."
        )
    kind = folders.kind_of(path, folders.TALKS)
    if kind.startswith(".parquet"):
        return _Parquet(path, columns, optional)
    if kind:
        return _Lines(path)
    raise ConfigError(f"{path} is of no known kind; they are {', '.join(folders.TALKS)}.")


class _Lines:
    """JSON lines, as bytes mapped into memory; blank lines do not count."""

    unread: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: bytes | mmap.mmap = b""
        try:
            with opened(path) as (content, _):
                if path.suffix.lower() in COMPRESSED:
                    self._bytes = content.read()
                elif path.stat().st_size:  # else it cannot be mapped
                    self._bytes = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise refused(path, error) from error
        self._places = array.array("q")  # of each line: its number, where it begins and ends
        mark_length(self._bytes[:4], str(path))  # refuses UTF-16
        begin, size = 0, len(self._bytes)
        for number in itertools.count(1):
            if begin == size:
                break
            end = self._bytes.find(b"\n", begin) + 1 or size
            if end - begin > MAX_RECORD:
                raise too_long(number, str(path))
            if self._line(begin, end).strip():
                self._places.extend((number, begin, end))
            begin = end

    def __len__(self) -> int:
        return len(self._places) // 3

    def row(self, index: int) -> Row:
        number, begin, end = self._places[3 * index : 3 * index + 3]

        def where() -> str:
            return f"line {number} of {self.path}"

        text = decode(self._line(begin, end), where(), begin)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{where()} is not JSON ({error})") from error
        return Row(value, where)

    def _line(self, begin: int, end: int) -> bytes:
        """Without marks before it: files that have one may have been put together."""
        line = self._bytes[begin:end]
        while line.startswith(MARK):
            line = line.removeprefix(MARK)
        return line


class _Parquet:
    """A Parquet file. Its footer is read at once, its columns with the first row."""

    def __init__(self, path: Path, columns: Sequence[str], optional: Sequence[str]) -> None:
        self.path = path
        with open_parquet(path) as file:
            self._rows: int = file.metadata.num_rows
            names: list[str] = file.schema_arrow.names
        # cais/mmlu's configuration auxiliary_train has all its fields in one called "train"
        self._inside = names == ["train"]
        missing = [] if self._inside else [name for name in columns if name not in names]
        if missing:
            raise ArtifactError(
                f"{path} has no column {missing[0]!r}, only {', '.join(names)}; it is of another "
                "data set, or of another version of it."
            )
        wanted = [*columns, *(name for name in optional if name in names)]
        self._columns = names if self._inside else wanted
        self.unread: Sequence[str] = [name for name in names if name not in self._columns]

    def __len__(self) -> int:
        return self._rows

    def row(self, index: int) -> Row:
        try:
            values = {name: column[index].as_py() for name, column in self._loaded.items()}
        except UnicodeDecodeError as error:
            raise RowError(f"{self._where(index)} is not UTF-8 text ({error})") from error
        return Row(values["train"] if self._inside else values, lambda: self._where(index))

    def _where(self, index: int) -> str:
        return f"row {index} of {self.path}"

    @cached_property
    def _loaded(self) -> dict[str, Any]:
        # By row groups and in one thread: half the memory at its peak, and no slower.
        import pyarrow

        with open_parquet(self.path) as file:
            groups = [
                file.read_row_group(number, columns=self._columns, use_threads=False)
                for number in range(file.num_row_groups)
            ]
            table = pyarrow.concat_tables(groups) if groups else file.read(self._columns)
        pyarrow.default_memory_pool().release_unused()
        return {name: table.column(name) for name in self._columns}
