"""Opening Parquet files; every failure is reported with the file's name and true kind."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from jaxchat.data.files.compressed import (
    BUFFER,
    COMPRESSED,
    Unreadable,
    looks_like,
    opened,
    refused,
)
from jaxchat.errors import first_line

# types of pyarrow that hold text
_TEXTUAL = "string large_string string_view binary large_binary binary_view null".split()


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; one in .gz or .zst is unpacked to a temporary file first.

    Raises Unreadable for whatever goes wrong while opening or while the block reads.
    """
    import pyarrow
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        try:
            source: Any = path
            if path.suffix.lower() in COMPRESSED:
                source = stack.enter_context(tempfile.TemporaryFile())
                with opened(path) as (content, _):
                    copyfileobj(content, source, BUFFER)
                source.seek(0)
            with parquet.ParquetFile(source, page_checksum_verification=True) as file:
                yield file
        except Unreadable:
            raise
        except OSError as error:
            if error.errno is not None:
                raise refused(path, error) from error
            raise _undecodable(path, error) from error
        except pyarrow.ArrowNotImplementedError as error:
            raise Unreadable(
                f"{path} uses what pyarrow does not read ({first_line(error)}); write it again "
                "with other settings, or leave it out."
            ) from error
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise _undecodable(path, error) from error


def text_column(file: Any, path: Path, column: str) -> None:
    """Raises Unreadable unless an open file has one column of this name that holds text."""
    from pyarrow import types

    schema = file.schema_arrow
    count = schema.names.count(column)
    if count != 1:
        there = ", ".join(schema.names) or "none"
        had = "no" if count == 0 else f"{count} columns"
        raise Unreadable(
            f'{path} has {had} column "{column}", only {there}; rename the one that holds the '
            "text, or leave the file out."
            if count == 0
            else f'{path} has {had} of the name "{column}"; rename all but one, or leave it out.'
        )
    kind = schema.field(column).type
    held = kind.value_type if types.is_dictionary(kind) else kind
    if not any(getattr(types, f"is_{name}")(held) for name in _TEXTUAL):
        raise Unreadable(
            f'{path} has a column "{column}" of type {kind}; it must hold text: write it again, or '
            "leave it out."
        )


def _undecodable(path: Path, error: BaseException) -> Unreadable:
    """The error by the file's first and last bytes: of another kind, cut off, or damaged."""
    with contextlib.suppress(OSError):
        if path.suffix.lower() not in COMPRESSED:
            with path.open("rb") as file:
                head = file.read(16)
                file.seek(max(0, path.stat().st_size - 4))
                tail = file.read(4)
            if not head:
                return Unreadable(f"{path} is cut off (it is empty); fetch it again.")
            if not head.startswith(b"PAR1"):
                found = looks_like(head)
                kind = f"; it looks like {found}" if found else ""
                return Unreadable(
                    f"{path} is no Parquet file{kind} ({first_line(error)}); fetch it again, or "
                    "leave it out."
                )
            if tail != b"PAR1":
                return Unreadable(
                    f"{path} is cut off: no Parquet footer stands at its end "
                    f"({first_line(error)}); fetch it again, or leave it out."
                )
    return Unreadable(f"{path} is damaged ({first_line(error)}); fetch it again, or leave it out.")
