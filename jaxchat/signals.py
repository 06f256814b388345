"""Asked to stop: what a signal means, and the exit code after it (layer 1)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that is told so starts the run again.
REQUEUE = 75
# A scheduler's: that the time is over, and (SLURM's --signal=USR1@120) that it soon will be.
NOTICES = (signal.SIGTERM, signal.SIGUSR1)


def exit_code(number: int) -> int:
    """The exit code after a signal: a shell's, but REQUEUE after a scheduler's notice."""
    return REQUEUE if number in NOTICES else 128 + number


class Interrupted(BaseException):
    """The process was asked to stop; what was done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """A handler for work that loses nothing when it is left at once."""
    del frame
    raise Interrupted(number)


class StopRequest:
    """The number of the signal that asked to stop; 0 while none did."""

    def __init__(self) -> None:
        self._received = 0
        self._at_once = False

    def __call__(self) -> int:
        return self._received

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self._received = number
        if self._at_once:
            raise_interrupted(number, frame)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While open, a request raises Interrupted there and then: for work that may be left."""
        self._at_once = True
        try:
            if self._received:
                raise Interrupted(self._received)
            yield
        finally:
            self._at_once = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While open, SIGTERM, SIGUSR1 and SIGINT are only noted."""
    request = StopRequest()
    numbers = (*NOTICES, signal.SIGINT)
    old = {number: signal.signal(number, request.note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
