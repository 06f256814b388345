"""Downloads many files at once: resumed, checked, retried, and given out in the order asked for.

A file that is given out is whole: its size and checksum are those that its server has listed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jaxchat.data.download import cache
from jaxchat.data.download.cache import Digest, RemoteFile
from jaxchat.data.download.web import OutOfRange, Retry, Stopped, TransientError, Web, WebError
from jaxchat.errors import ArtifactError
from jaxchat.paths import offline_by

WORKERS = 4
WRONG_TRIES = 3  # times that a file may come with wrong bytes
_REPORT = 0.5  # seconds between two reports of progress
_JOIN = 1.0  # seconds that the workers are given to notice that they are to stop

Progress = Callable[[int], None]


def download(
    files: Sequence[RemoteFile],
    web: Web,
    *,
    workers: int = WORKERS,
    ahead: int | None = None,
    keep: bool = True,
    verify: bool = False,
    offline: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[RemoteFile, Path]]:
    """Yields each file with its path, in the order of `files`, as soon as it is whole.

    Args:
        web: whom to ask, and how patiently.
        workers: files that come at the same time.
        ahead: files that may come before the one is asked for that stands before them; None: all.
        keep: whether files stay; if not, whoever takes them removes each (`cache.remove`) before
            asking for the next, and the disk needs room for only `ahead` of them.
        verify: reads and checks files that are there already, too.
        offline: asks nobody.
        progress: is told the bytes that are there, of all files together.

    Raises ArtifactError before anything is downloaded when the disk has too little room or, when
    offline, when files are missing; and where its place is in the order, for what cannot be had.
    Leaving the loop, or Ctrl-C, stops all workers; what has come is kept and goes on another time.
    """
    missing = [file for file in files if not cache.is_whole(file)]
    if offline and missing:
        raise _missing(missing)
    ahead = len(files) if ahead is None else max(ahead, 1)
    cache.check_space(missing, None if keep else ahead + 1)
    crew = _WorkerPool(files, web, ahead, verify, offline)
    return _give_out(crew, max(1, min(workers, ahead, len(files))), progress)


def _missing(missing: Sequence[RemoteFile]) -> ArtifactError:
    names = " ".join(dict.fromkeys(file.source for file in missing))
    files = "1 file is" if len(missing) == 1 else f"{len(missing):,} files are"
    return ArtifactError(
        f"{files} not there, the first is {missing[0]} ({missing[0].local}), and "
        f"{offline_by()} forbids asking for them; where there is a network, run: jaxchat data "
        f"download {names}"
    )


def _give_out(
    crew: _WorkerPool, workers: int, progress: Progress | None
) -> Iterator[tuple[RemoteFile, Path]]:
    threads = [
        threading.Thread(target=crew.work, name=f"download-{number}", daemon=True)
        for number in range(workers)
    ]
    try:
        for thread in threads:
            thread.start()
        for index, file in enumerate(crew.files):
            result: BaseException | bool | None = False
            while result is False:
                result = crew.wait_for(index)
                if progress is not None:
                    progress(sum(crew.here))
            if isinstance(result, BaseException):
                raise result
            yield file, file.local
    finally:
        crew.leave()
        deadline = time.monotonic() + _JOIN
        for thread in threads:  # one that waits for a stalled server ends with its time limit
            thread.join(max(deadline - time.monotonic(), 0.0))


class _WorkerPool:
    """What the workers share: which file is next, what became of each, how much of it is here."""

    def __init__(
        self, files: Sequence[RemoteFile], web: Web, ahead: int, verify: bool, offline: bool
    ) -> None:
        self.files, self.web, self.ahead = files, web, ahead
        self.verify, self.offline = verify, offline
        self.stop = threading.Event()
        self.here = [bytes_here(file) for file in files]
        self._changed = threading.Condition()
        self._results: dict[int, BaseException | None] = {}
        self._next = 0
        self._given = 0
        self._failed = False

    def work(self) -> None:
        """Fetches one file after the other, until there is no more."""
        while (index := self._claim()) is not None:
            error: BaseException | None = None
            try:
                self._fetch(index)
            except Stopped:
                return
            except BaseException as caught:  # raised again where the file is given out
                error = caught
            with self._changed:
                self._results[index] = error
                self._failed |= error is not None
                self._changed.notify_all()

    def _claim(self) -> int | None:
        with self._changed:
            while not self.stop.is_set() and not self._failed and self._next < len(self.files):
                if self._next < self._given + self.ahead:
                    self._next += 1
                    return self._next - 1
                self._changed.wait()
        return None

    def wait_for(self, index: int) -> BaseException | bool | None:
        """The error of a file, None when it is whole, False when it is not known yet."""
        with self._changed:
            if index not in self._results:
                self._changed.wait(_REPORT)
            if index not in self._results:
                return False
            self._given = index + 1
            self._changed.notify_all()
            return self._results[index]

    def leave(self) -> None:
        """Tells the workers to stop."""
        with self._changed:
            self.stop.set()
            self._changed.notify_all()

    def _fetch(self, index: int) -> None:
        file = self.files[index]
        if cache.is_whole(file, self.verify):
            return
        if self.offline:
            raise _missing([file])
        with cache.part(file, self.stop) as part:
            if not cache.is_whole(file, self.verify):  # else another process was faster
                file.local.unlink(missing_ok=True)  # what is there is damaged
                _Transfer(index, part, self).run()
        self.here[index] = file.local.stat().st_size


class _Transfer:
    """One file on its way into its part."""

    def __init__(self, index: int, part: BinaryIO, crew: _WorkerPool) -> None:
        self.index, self.part, self.crew = index, part, crew
        self.file = crew.files[index]
        self.digest = Digest(self.file)
        self.wrong = 0

    def run(self) -> None:
        """Retry until the file is whole. Raises WebError, or Stopped."""
        self._take_up()
        tries = Retry(self.crew.web, str(self.file), self.file.url, self.crew.stop)
        best = self.digest.size
        while True:
            try:
                if self.file.size is None or self.digest.size < self.file.size:
                    self._receive()
                if self.digest.matches():
                    return cache.finish(self.file, self.part, self.digest)
                self._refuse_what_came()
            except TransientError as error:
                self.part.flush()
                if not self.file.version or isinstance(error, OutOfRange):
                    self._start_anew()
                tries.failed(error, progressed=self.digest.size > best)
                best = max(best, self.digest.size)

    def _take_up(self) -> None:
        """Takes what has come before; from the beginning where that cannot be of this content."""
        if self.file.version:
            self.digest.read(self.part)
        if not self.file.version or self.digest.size > (self.file.size or self.digest.size):
            self._start_anew()

    def _start_anew(self) -> None:
        self.digest = Digest(self.file)
        self.part.seek(0)
        self.part.truncate()

    def _receive(self) -> None:
        """Asks for the bytes that are missing and writes what comes. Raises TransientError if too few."""
        start = self.digest.size
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self.file.tag:
            headers["If-Range"] = self.file.tag
        with self.crew.web.open(self.file.url, str(self.file), headers) as answer:
            if answer.status == 206 and answer.start != start:
                self._start_anew()
                raise TransientError(f"the server does not send the bytes from {start:,} on")
            end = None if answer.length is None else answer.start + answer.length
            if None not in (end, self.file.size) and end != self.file.size:
                self._refuse(f"{end:,} bytes")  # a page of the network, maybe: the part is good
            if answer.start != start:  # a server that does not know ranges sends all of it
                self._start_anew()
            while data := answer.read():
                if self.crew.stop.is_set():
                    raise Stopped
                self.part.write(data)
                self.digest.update(data)
                self.crew.here[self.index] = self.digest.size
                if self.file.size is not None and self.digest.size > self.file.size:
                    return
        wanted = self.file.size if end is None else end
        if wanted is not None and self.digest.size < wanted:
            raise TransientError(f"the answer ended after {self.digest.size:,} of {wanted:,} bytes")

    def _refuse_what_came(self) -> None:
        """Throws it away. Raises WebError the last time, else TransientError."""
        came = f"{self.digest.size:,} bytes with sha256 {self.digest.sha256}"
        self._start_anew()
        self._refuse(came)

    def _refuse(self, came: str) -> None:
        wanted = self.file.sha256 or self.file.blob or "unknown"
        size = "unknown" if self.file.size is None else f"{self.file.size:,}"
        self.wrong += 1
        if self.wrong >= WRONG_TRIES:
            raise WebError(
                f"{self.file} came wrong {self.wrong} times: {came}, where the list has {size} "
                f"bytes with checksum {wanted}; --refresh asks for the list anew, HF_ENDPOINT or "
                "--base-url name another server."
            )
        raise TransientError(f"wrong bytes came: {came}")


def bytes_here(file: RemoteFile) -> int:
    """Bytes of a file that have come already, whole or in part."""
    return file.local.stat().st_size if cache.is_whole(file) else cache.part_size(file)
