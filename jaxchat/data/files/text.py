"""Bytes as text: UTF-8 with or without a byte order mark, in pieces or in lines.

Memory is bounded: plain text comes in pieces of at most twice CHUNK, whether or not it has lines; a
record that must be parsed whole has at most MAX_RECORD bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from jaxchat.data.files.compressed import Unreadable, looks_like, opened

CHUNK = 1 << 20  # bytes of plain text in one piece, cut at a line's end where there is one
MAX_RECORD = 1 << 26  # bytes of a line that must be parsed whole, as JSON
MARK = b"\xef\xbb\xbf"  # the byte order mark in UTF-8

_WIDE_MARKS = {  # the longer ones first
    b"\xff\xfe\0\0": "UTF-32LE",
    b"\0\0\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
# which of the first four bytes are zero when the first character is ASCII (as RFC 4627, 3, has it)
_WIDE_ZEROS = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}


def read_text(path: Path) -> str:
    r"""The whole of a small file, its line ends as \n.

    Raises OSError, and Unreadable for what is not UTF-8.
    """
    text = decode(path.read_bytes(), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode(data: bytes, name: str, position: int = 0) -> str:
    """Bytes of the file `name` that stand at `position`; a mark at its begin is taken off.

    Raises Unreadable for UTF-16, UTF-32 and all else that is not UTF-8.
    """
    return _decode(data, name, position, final=True)[0]


def _decode(data: bytes, name: str, position: int, final: bool) -> tuple[str, int]:
    """The text, and its bytes; a last character that is not whole is left, unless `final`."""
    skipped = mark_length(data, name) if position == 0 else 0
    try:
        text, used = codecs.utf_8_decode(memoryview(data)[skipped:], "strict", final)
        return text, skipped + used
    except UnicodeDecodeError as error:
        found = looks_like(data[:16]) if position == 0 else ""
        advice = (
            f"it looks like {found}; give it a name that ends in what it is"
            if found
            else "convert it (iconv -f ENCODING -t UTF-8)"
        )
        raise Unreadable(
            f"{name} is not UTF-8 text (byte {position + skipped + error.start}); {advice}, or "
            "leave it out."
        ) from error


def is_unicode(text: str) -> bool:
    r"""Whether no surrogate stands alone, as one may in a Python string and in JSON (\ud800)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mark_length(head: bytes, name: str) -> int:
    """Bytes of the mark that a file's first bytes are; raises Unreadable for UTF-16 and UTF-32."""
    wide = next((kind for mark, kind in _WIDE_MARKS.items() if head.startswith(mark)), None)
    if wide is None and len(head) >= 4:
        wide = _WIDE_ZEROS.get(tuple(byte == 0 for byte in head[:4]))  # type: ignore[arg-type]
    if wide is not None:
        raise Unreadable(
            f"{name} is {wide} text; only UTF-8 is read: convert it (iconv -f {wide} -t UTF-8 "
            "FILE > NEW), or leave it out."
        )
    return len(MARK) if head.startswith(MARK) else 0


def pieces(file: IO[bytes], name: str) -> Iterator[tuple[str, int]]:
    """Plain text in pieces, each with the bytes that have been read with it.

    A piece is cut behind the first line's end after CHUNK bytes; where there is none within CHUNK
    more, between two characters.
    """
    position, held = 0, b""
    while data := file.read(CHUNK):
        data = held + data + file.readline(CHUNK)
        text, used = _decode(data, name, position, final=False)
        held = data[used:]
        position += used
        if text:  # not a mark alone
            yield text, position
    if held:
        yield decode(held, name, position), position + len(held)


def read_lines(path: Path) -> Iterator[tuple[int, str, int]]:
    """(number, line, bytes of the file read with it) of all lines that are not blank.

    The file may be compressed. Marks before a line are taken off: files that have one may have been
    put together. Raises Unreadable for a line of more than MAX_RECORD bytes.
    """
    name, position = str(path), 0
    with opened(path) as (content, file):
        for number, line in enumerate(iter(partial(content.readline, MAX_RECORD + 1), b""), 1):
            if len(line) > MAX_RECORD:
                raise too_long(number, name)
            text = decode(line, name, position).lstrip("\ufeff")
            position += len(line)
            if text.strip(" \t\r\n\v\f"):
                yield number, text, position if content is file else file.tell()


def too_long(number: int, name: str) -> Unreadable:
    """The error for a record that is longer than what is parsed whole."""
    return Unreadable(
        f"line {number} of {name} is longer than {MAX_RECORD >> 20} MiB, the most that one record "
        "may have; split it into several, or give its text as .txt, which is read in pieces."
    )
