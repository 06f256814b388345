"""Batches made ahead by a thread, so that the device never waits for them (layer 2)."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

AHEAD = 2  # batches that are ready while a step runs
POLL = 0.2  # seconds

Batch = TypeVar("Batch")


@contextlib.contextmanager
def prefetched(
    batch_of: Callable[[int], Batch],
    steps: range,
    *,
    ahead: int = AHEAD,
    give_up: Callable[[], object] = lambda: False,
) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over `batch_of(step)` for the steps in order, made ahead by a thread.

    `batch_of` reads a batch and puts it on the device. What it raises is raised where its batch
    is asked for. The iterator ends early when no batch is ready and `give_up` returns true: a
    stage that has to stop need not wait for data.
    """
    reader = _Reader(batch_of, steps, ahead)
    thread = threading.Thread(target=reader.read, name="batches", daemon=True)
    thread.start()
    try:
        yield reader.batches(give_up)
    finally:
        reader.stop.set()
        # It ends after the batch that it is at; if that is waited for, it is not waited for here.
        thread.join(timeout=1.0)


class _Reader(Generic[Batch]):
    def __init__(self, batch_of: Callable[[int], Batch], steps: range, ahead: int) -> None:
        self.batch_of, self.steps = batch_of, steps
        self.ready: queue.Queue[Batch | _Failed] = queue.Queue(maxsize=ahead)
        self.stop = threading.Event()

    def read(self) -> None:
        """The thread."""
        for step in self.steps:
            try:
                made: Batch | _Failed = self.batch_of(step)
            except BaseException as error:
                made = _Failed(error)
            while not self.stop.is_set():
                with contextlib.suppress(queue.Full):
                    self.ready.put(made, timeout=POLL)
                    break
            if self.stop.is_set() or isinstance(made, _Failed):
                return

    def batches(self, give_up: Callable[[], object]) -> Iterator[Batch]:
        """What the thread has made, in order."""
        for _ in self.steps:
            while True:
                try:
                    made = self.ready.get(timeout=POLL)
                    break
                except queue.Empty:
                    if give_up():
                        return
            if isinstance(made, _Failed):
                raise made.error
            yield made


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error
