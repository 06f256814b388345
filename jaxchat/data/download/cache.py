"""Downloaded files on disk: whole ones, with a record of their checksum, and partial ones.

    HOME/data/SOURCE/COMMIT/PATH              a whole file
    HOME/data/SOURCE/COMMIT/.NAME.json        its size, time and sha256: it is not read again
    HOME/data/SOURCE/COMMIT/NAME.KEY.part     what has come so far; KEY says of which content

A file has its name only when all of its bytes are there, checked and on the disk. A part is held
by one process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from jaxchat import paths
from jaxchat.data.download.web import Stopped
from jaxchat.errors import ArtifactError

MARGIN = 1 << 30  # bytes that stay free on the disk
POLL = 0.2  # seconds between two looks at a part that another process holds
_BLOCK = 1 << 20
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)  # some network file systems


@dataclass(frozen=True)
class RemoteFile:
    """A file that a server has, and where it is saved here."""

    source: str  # the name of its source
    path: str  # within the dataset, with /
    url: str
    local: Path
    size: int | None = None  # bytes; None when the server has not said
    sha256: str | None = None  # of its bytes, in hexadecimal; None when the server has not said
    blob: str | None = None  # git's hash, which small files of a repository have instead
    tag: str | None = None  # ETag or Last-Modified of a server that has no checksums

    @property
    def version(self) -> str:
        """Identifies the content; "" when nothing is known of it: no part can be resumed."""
        known = self.sha256 or self.blob or self.tag
        return f"{known}/{self.size}" if known else ""

    def __str__(self) -> str:
        return f"{self.path} of {self.source}"


class Digest:
    """Running checksums of a file's bytes."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self.size = 0
        self._sha256 = hashlib.sha256()
        size = file.size or 0
        self._blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if file.blob else None

    def update(self, data: bytes) -> None:
        """Adds the next bytes."""
        self.size += len(data)
        self._sha256.update(data)
        if self._blob is not None:
            self._blob.update(data)

    def read(self, file: BinaryIO) -> None:
        """Adds all bytes of a file from its position on."""
        while data := file.read(_BLOCK):
            self.update(data)

    @property
    def sha256(self) -> str:
        """Of all bytes so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def matches(self) -> bool:
        """Whether the bytes are those of the file, as far as the server has said what they are."""
        wanted = self.file
        if wanted.size is not None and self.size != wanted.size:
            return False
        if wanted.sha256 is not None:
            return self.sha256 == wanted.sha256
        return self._blob is None or self._blob.hexdigest() == wanted.blob


def is_whole(file: RemoteFile, verify: bool = False) -> bool:
    """Whether the file is here, with all its bytes.

    A file whose size and time are as when it was checked is not read again, unless `verify`.
    """
    if not is_here(file):
        return False
    stat = file.local.stat()
    record = _read_record(file)
    if not verify and record.get("mtime_ns") == stat.st_mtime_ns:
        if file.sha256 is not None:
            return record.get("sha256") == file.sha256
        return record.get("version") == file.version
    digest = Digest(file)
    with file.local.open("rb") as data:
        digest.read(data)
    if not digest.matches():
        return False
    if not (file.sha256 or file.blob):  # the checksum recorded when it came counts
        known = record["sha256"] if record.get("version") == file.version else digest.sha256
        if known != digest.sha256:
            return False
    with contextlib.suppress(OSError):  # a cache that others may only read is still good
        _write_record(file, digest)
    return True


def is_here(file: RemoteFile) -> bool:
    """Whether the file is there with the right size; nothing is read."""
    size = size_of(file.local)
    return size is not None and file.size in (None, size)


def sha256_of(file: RemoteFile) -> str | None:
    """The checksum of a whole file: its server's, else the one recorded when it came."""
    noted = _read_record(file).get("sha256")
    return file.sha256 or (noted if isinstance(noted, str) else None)


@contextlib.contextmanager
def part(file: RemoteFile, stop: threading.Event) -> Iterator[BinaryIO]:
    """The file's part, open for reading and writing, held against other processes.

    Waits while another process holds it; raises Stopped when `stop` is set meanwhile. When the
    other one has finished the file, the part is a new, empty one: ask `is_whole` again.
    """
    file.local.parent.mkdir(parents=True, exist_ok=True)
    path = part_path(file)
    _drop_old_parts(file, path)
    while True:
        # not "a+": what is there is read first, and may be cut off
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        with handle:
            _lock(handle, stop)
            if _is(handle, path):
                try:
                    yield handle
                finally:
                    with contextlib.suppress(OSError):  # a full disk has been reported already
                        handle.flush()
                    if _is(handle, path) and not os.fstat(handle.fileno()).st_size:
                        path.unlink()  # nothing has come: leave no trace
                return


def part_path(file: RemoteFile) -> Path:
    """The path of the part of this content."""
    key = paths.sha256_text(file.version)[:12]
    return file.local.with_name(f"{file.local.name}.{key}.part")


def part_size(file: RemoteFile) -> int:
    """Bytes that have come already and can be resumed."""
    return size_of(part_path(file)) or 0 if file.version else 0


def size_of(path: Path) -> int | None:
    """Bytes of a file; None when it is not there."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lock(handle: BinaryIO, stop: threading.Event) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if stop.wait(POLL):
                raise Stopped from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise


def _is(handle: BinaryIO, path: Path) -> bool:
    """Whether the path still names the open file: a process that held it may have renamed it."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _drop_old_parts(file: RemoteFile, current: Path) -> None:
    """Removes parts of other contents, except those that another process holds."""
    for path in _parts(file):
        if path == current:
            continue
        with contextlib.suppress(OSError), path.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _parts(file: RemoteFile) -> list[Path]:
    name = re.compile(rf"{re.escape(file.local.name)}\.[^.]+\.part")
    folder = file.local.parent
    return [
        path for path in (folder.iterdir() if folder.is_dir() else ()) if name.fullmatch(path.name)
    ]


def finish(file: RemoteFile, handle: BinaryIO, digest: Digest) -> None:
    """Gives a part, whose bytes have been checked, the name of the file."""
    handle.flush()
    os.fsync(handle.fileno())
    part_path(file).replace(file.local)
    paths.fsync_folder(file.local.parent)
    _write_record(file, digest)


def remove(file: RemoteFile) -> None:
    """Deletes a downloaded file, its record and its parts."""
    for path in (file.local, _record_path(file), *_parts(file)):
        path.unlink(missing_ok=True)


def check_space(files: Iterable[RemoteFile], at_once: int | None = None) -> None:
    """Raises ArtifactError when missing files do not fit on the disk.

    `at_once`: how many of the files are there at the same time, when they are removed after use.
    """
    sizes = [(file, (file.size or 0) - part_size(file)) for file in files]
    if at_once is not None:
        sizes = sorted(sizes, key=lambda pair: pair[1])[-at_once:]
    needed = sum(max(size, 0) for _, size in sizes)
    if not needed:
        return
    folder = sizes[0][0].local.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed + MARGIN > free:
        count = "1 file needs" if len(sizes) == 1 else f"{len(sizes):,} files need"
        raise ArtifactError(
            f"{count} {needed / 1e9:,.1f} GB, and {MARGIN / 1e9:.1f} GB are to "
            f"stay free, but {folder} has {free / 1e9:,.1f} GB free; free some space, name another "
            "folder with --home, or ask for fewer files."
        )


def _record_path(file: RemoteFile) -> Path:
    return file.local.with_name(f".{file.local.name}.json")


def _read_record(file: RemoteFile) -> dict[str, object]:
    try:
        record = paths.read_json(_record_path(file))
    except (ArtifactError, OSError):
        return {}
    return record if isinstance(record, dict) and "sha256" in record else {}


def _write_record(file: RemoteFile, digest: Digest) -> None:
    stat = file.local.stat()
    record = {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": digest.sha256,
        "version": file.version,
        "checked": bool(file.sha256 or file.blob),  # against a checksum of the server's
    }
    paths.write_json(_record_path(file), record)
