"""Checksums of the user's own files, which are not read again while nothing says they changed.

What a file holds decides; size, times and inode only spare reading it again. They are kept below
the home, for each folder in a file of its own (I/O; layer 2).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Self

from jaxchat.paths import atomic_open, sha256_file, sha256_text

FOLDER = "checksums"  # of the home
# A file may be written twice within a tick of its file system's clock: a younger one is read again.
YOUNG = 2.0  # seconds


def kept_in(home: Path, folder: Path) -> Path:
    """Where a home keeps the checksums of the files below a folder, or of one file."""
    return home / FOLDER / f"{sha256_text(str(folder))[:16]}.json"


class Checksums:
    """The checksums of files below a folder; those computed while open are kept in a file."""

    def __init__(self, path: Path, folder: Path) -> None:
        """`path` is what they are kept in. What is not there or damaged is computed again."""
        self._path, self._top = path, os.path.join(folder, "")
        self._known = _read(path)
        self._used: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Keeps what was asked for, where anything is new; a home may be read-only."""
        if error == (None, None, None) and self._used != self._known:
            with contextlib.suppress(OSError), atomic_open(self._path) as file:
                file.write(json.dumps(self._used))  # not json.dump, which is slow for so many

    def of(self, path: Path) -> str:
        """The sha256 of a file's bytes."""
        name = os.fspath(path).removeprefix(self._top)
        stat = os.stat(path)
        mark = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} "
        known = self._known.get(name, "")
        if known.startswith(mark):
            self._used[name] = known
            return known.removeprefix(mark)
        now, digest = time.time(), sha256_file(path)
        if max(stat.st_mtime, stat.st_ctime) + YOUNG < now:
            self._used[name] = mark + digest
        return digest


def _read(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(value, dict) and all(isinstance(mark, str) for mark in value.values())
    return value if whole else {}
