"""Opening files, decompressed where their names say so, with the true reason of a failure.

A failure is one of: the disk or the rights, not this format, cut off, damaged, or a Zstandard file
that needs more memory or a dictionary. Each is reported with the file's name.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from jaxchat.errors import ArtifactError, first_line

COMPRESSED = (".gz", ".zst")
BUFFER = 1 << 20  # bytes that are decompressed at a time
MAX_WINDOW = 1 << 27  # bytes; the zstd library's own limit, which pyarrow does not raise

_NAMES = {".gz": "gzip", ".zst": "Zstandard"}
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # RFC 8878, 3.1.2
_FRAME = 0xFD2FB528  # 3.1.1
# the first bytes of files of other kinds -> their names
_MAGIC = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (.zst)",
    b"PAR1": "Parquet (.parquet)",
    b"PARE": "encrypted Parquet",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"%PDF": "a PDF",
    b"SQLite format 3": "a SQLite database",
}
_DECODING = (OSError, EOFError, zlib.error)


class Unreadable(ArtifactError):
    """A file of the user's that cannot be read; the message names it, the reason and the remedy."""


def looks_like(head: bytes) -> str:
    """The kind of file that begins with these bytes, in words; "" for an unknown one."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def refused(path: object, error: OSError) -> Unreadable:
    """The sentence for a file that the operating system does not let us read."""
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    return Unreadable(
        f"{path} cannot be read ({reason}); see to the file, its disk or its "
        "rights, and give the same command again."
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's content as bytes, and the file itself, whose `tell` says how far it is read.

    Both are the same where the name does not end in .gz or .zst, whatever its capitals. Raises
    Unreadable for whatever goes wrong while opening or while the block reads.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if suffix not in COMPRESSED:
                yield file, file
                return
            _check_begin(path, file, suffix)
            with _decompressed(file, suffix) as content:
                yield content, file
    except Unreadable:
        raise
    except _DECODING as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise refused(path, error) from error
        raise _undecodable(path, error, suffix) from error


def _check_begin(path: Path, file: IO[bytes], suffix: str) -> None:
    """Raises Unreadable for what is empty, or does not begin as its name says."""
    head = file.read(16)
    file.seek(0)
    if not head:
        raise Unreadable(f"{path} is cut off (it is empty); fetch it again, or leave it out.")
    if suffix == ".gz":
        good = head.startswith(b"\x1f\x8b"[: len(head)])
    else:
        number = int.from_bytes(head[:4], "little")
        good = len(head) < 4 or number == _FRAME or number in _SKIPPABLE
    if not good:
        found = looks_like(head)
        raise Unreadable(
            f"{path} is not {_NAMES[suffix]}"
            + (f"; it looks like {found}" if found else "")
            + "; give it a name that ends in what it is, fetch it again, or leave it out."
        )


def _decompressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(file))
    import pyarrow

    # It tells a file that was cut off, as the package zstandard does not.
    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    return io.BufferedReader(stream, BUFFER)


def _undecodable(path: Path, error: BaseException, suffix: str) -> Unreadable:
    reason = first_line(error)
    if suffix == ".zst":
        window = zstd_window(path)
        if window > MAX_WINDOW + 1 or "too much memory" in reason:
            size = f"{window / 2**20:,.0f} MiB"
            wide = f"a window of {size}" if window > MAX_WINDOW else "too large a window"
            return Unreadable(
                f"{path} was compressed with {wide}, as --long and --ultra do, and at most "
                f"{MAX_WINDOW >> 20} MiB are read; compress it again: zstd -d --long=31 -c "
                f"{shlex.quote(str(path))} | zstd -19 -o NEW{''.join(path.suffixes[-2:])}"
            )
        if "ictionary" in reason:
            return Unreadable(
                f"{path} was compressed with a dictionary, which is not read ({reason}); compress "
                f"it again: zstd -d -D DICTIONARY -c {shlex.quote(str(path))} | zstd -o NEW.zst"
            )
    if isinstance(error, EOFError) or "Truncated" in reason:
        return Unreadable(f"{path} is cut off ({reason}); fetch it again, or leave it out.")
    return Unreadable(
        f"{path} is damaged: its bytes are not what {_NAMES[suffix]} wrote ({reason}); fetch it "
        "again, or leave it out."
    )


def zstd_window(path: Path) -> int:
    """The largest window of a Zstandard file's first frame, in bytes; 0 where there is none.

    Source: RFC 8878, 3.1.1.1 (the header of a frame) and 3.1.2 (frames that are skipped).
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        while len(head := file.read(18)) >= 8:
            magic = int.from_bytes(head[:4], "little")
            if magic in _SKIPPABLE:
                file.seek(int.from_bytes(head[4:8], "little") + 8 - len(head), io.SEEK_CUR)
                continue
            return _window(head) if magic == _FRAME else 0
    return 0


def _window(head: bytes) -> int:
    """The window of a frame whose header `head` is."""
    descriptor = head[4]
    if not descriptor >> 5 & 1:
        exponent, mantissa = head[5] >> 3, head[5] & 7
        base = 1 << 10 + exponent
        return base + (base >> 3) * mantissa
    # a single segment: the window is the content, whose size stands behind the dictionary's number
    begin = 5 + (0, 1, 2, 4)[descriptor & 3]
    bytes_of = (1, 2, 4, 8)[descriptor >> 6]
    size = int.from_bytes(head[begin : begin + bytes_of], "little")
    return size + 256 if bytes_of == 2 else size
