"""Parallel downloads: resumed, checked, retried, and yielded in the order of the request.

A file that is yielded is whole: its size and checksum are those that its server has listed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from jaxchat.data.download import cache
from jaxchat.data.download.cache import Digest, RemoteFile
from jaxchat.data.download.web import OutOfRange, Retry, Stopped, TransientError, Web, WebError
from jaxchat.errors import ArtifactError
from jaxchat.paths import offline_by
from jaxchat.progress import Progress as ProgressBar

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
        web: the client, with its retry policy.
        workers: files that come at the same time.
        ahead: files that may come before their predecessor is taken; None: all.
        keep: whether files stay; if not, the caller removes each (`cache.remove`) before it takes
            the next, and the disk needs room for only `ahead` of them.
        verify: reads and checks files that are there already, too.
        offline: no server is asked.
        progress: called with the bytes that are there, of all files together.

    Raises ArtifactError before anything is downloaded when the disk has too little room or, when
    offline, when files are missing; and where its place is in the order, for what cannot be had.
    Leaving the loop, or Ctrl-C, stops all workers; what has come is kept, and resumed another time.
    """
    missing = [file for file in files if not cache.is_whole(file)]
    if offline and missing:
        raise _missing(missing)
    ahead = len(files) if ahead is None else max(ahead, 1)
    cache.check_space(missing, None if keep else ahead + 1)
    pool = _WorkerPool(files, web, ahead, verify, offline)
    return pool.results(max(1, min(workers, ahead, len(files))), progress)


def download_all(files: Sequence[RemoteFile], web: Web, **options: Any) -> None:
    """Downloads files, as `download` does, and shows the progress."""
    total, start = sum(file.size or 0 for file in files), sum(map(bytes_here, files))
    with ProgressBar("downloading", total // 10**6, "MB", start // 10**6) as bar:
        for _ in download(files, web, progress=lambda here: bar.update(here // 10**6), **options):
            pass


def _missing(missing: Sequence[RemoteFile]) -> ArtifactError:
    names = " ".join(dict.fromkeys(file.source for file in missing))
    files = "1 file is" if len(missing) == 1 else f"{len(missing):,} files are"
    return ArtifactError(
        f"{files} not there, the first is {missing[0]} ({missing[0].local}), and "
        f"{offline_by()} forbids asking for them; where there is a network, run: jaxchat data "
        f"download {names}"
    )


class _WorkerPool:
    """Fetches files with threads, in their order."""

    def __init__(
        self, files: Sequence[RemoteFile], web: Web, ahead: int, verify: bool, offline: bool
    ) -> None:
        self.files, self.web, self.ahead = files, web, ahead
        self.verify, self.offline = verify, offline
        self.stop = threading.Event()
        self.here = [bytes_here(file) for file in files]
        self._failed = False
        self._results: list[Future[None]] = [Future() for _ in files]
        self._tasks: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._admitted = 0

    def results(self, workers: int, progress: Progress | None) -> Iterator[tuple[RemoteFile, Path]]:
        """Starts the workers and yields each file when it is whole. Raises its error, if any."""
        threads = [
            threading.Thread(target=self._work, name=f"download-{number}", daemon=True)
            for number in range(workers)
        ]
        try:
            self._admit(self.ahead)
            for thread in threads:
                thread.start()
            for index, (file, result) in enumerate(zip(self.files, self._results, strict=True)):
                done = False
                while not done:
                    done = bool(wait([result], _REPORT).done)
                    if progress is not None:
                        progress(sum(self.here))
                result.result()
                self._admit(index + 1 + self.ahead)
                yield file, file.local
        finally:
            self.stop.set()
            for _ in threads:
                self._tasks.put(None)
            deadline = time.monotonic() + _JOIN
            for thread in threads:  # one that waits for a stalled server ends with its time limit
                if thread.ident is not None:
                    thread.join(max(deadline - time.monotonic(), 0.0))

    def _admit(self, count: int) -> None:
        """Lets the workers fetch the first `count` files."""
        for index in range(self._admitted, min(count, len(self.files))):
            self._tasks.put(index)
            self._admitted = index + 1

    def _work(self) -> None:
        """Fetches one file after the other, until one of them fails."""
        while (index := self._tasks.get()) is not None:
            if self.stop.is_set() or self._failed:
                return
            try:
                self._fetch(index)
                self._results[index].set_result(None)
            except Stopped:
                return
            except BaseException as error:  # raised again where the file is awaited
                self._failed = True
                self._results[index].set_exception(error)

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
    """The transfer of one file into its part."""

    def __init__(self, index: int, part: BinaryIO, pool: _WorkerPool) -> None:
        self.index, self.part, self.pool = index, part, pool
        self.file = pool.files[index]
        self.digest = Digest(self.file)
        self.wrong = 0

    def run(self) -> None:
        """Tries until the file is whole. Raises WebError, or Stopped."""
        self._resume()
        tries = Retry(self.pool.web, str(self.file), self.file.url, self.pool.stop)
        best = self.digest.size
        while True:
            try:
                if self.file.size is None or self.digest.size < self.file.size:
                    self._receive()
                if self.digest.matches():
                    return cache.finish(self.file, self.part, self.digest)
                came = f"{self.digest.size:,} bytes with sha256 {self.digest.sha256}"
                self._restart()
                self._reject(came)
            except TransientError as error:
                self.part.flush()
                if not self.file.version or isinstance(error, OutOfRange):
                    self._restart()
                tries.failed(error, progressed=self.digest.size > best)
                best = max(best, self.digest.size)

    def _resume(self) -> None:
        """Reads what has come before; restarts where that cannot be of this content."""
        if self.file.version:
            self.digest.read(self.part)
        if not self.file.version or self.digest.size > (self.file.size or self.digest.size):
            self._restart()

    def _restart(self) -> None:
        self.digest = Digest(self.file)
        self.part.seek(0)
        self.part.truncate()

    def _receive(self) -> None:
        """Asks for the missing bytes and writes them. Raises TransientError if too few come."""
        start = self.digest.size
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and self.file.tag:
            headers["If-Range"] = self.file.tag
        with self.pool.web.open(self.file.url, str(self.file), headers) as answer:
            if answer.status == 206 and answer.start != start:
                self._restart()
                raise TransientError(f"the server does not send the bytes from {start:,} on")
            end = None if answer.length is None else answer.start + answer.length
            if None not in (end, self.file.size) and end != self.file.size:
                self._reject(f"{end:,} bytes")  # a page of the network, maybe: the part is good
            if answer.start != start:  # a server that does not know ranges sends all of it
                self._restart()
            while data := answer.read():
                if self.pool.stop.is_set():
                    raise Stopped
                self.part.write(data)
                self.digest.update(data)
                self.pool.here[self.index] = self.digest.size
                if self.file.size is not None and self.digest.size > self.file.size:
                    return
        wanted = self.file.size if end is None else end
        if wanted is not None and self.digest.size < wanted:
            raise TransientError(f"the answer ended after {self.digest.size:,} of {wanted:,} bytes")

    def _reject(self, came: str) -> NoReturn:
        """Raises WebError the last time, else TransientError."""
        wanted = self.file.sha256 or self.file.blob or "unknown"
        size = "unknown" if self.file.size is None else f"{self.file.size:,}"
        self.wrong += 1
        if self.wrong >= WRONG_TRIES:
            raise WebError(
                f"{self.file} came wrong {self.wrong} times: {came}, where the list has {size} "
                f"bytes with checksum {wanted}; --refresh asks for the list again, HF_ENDPOINT or "
                "--base-url name another server."
            )
        raise TransientError(f"wrong bytes came: {came}")


def bytes_here(file: RemoteFile) -> int:
    """Bytes of a file that have come already, whole or in part."""
    return cache.size_of(file.local) or 0 if cache.is_whole(file) else cache.part_size(file)
