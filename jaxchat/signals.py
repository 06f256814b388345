"""Graceful shutdown on SIGTERM, SIGUSR1 and SIGINT; exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# EX_TEMPFAIL of sysexits.h, "try again later": a scheduler that sees it requeues the run.
REQUEUE = 75
# Sent by schedulers: the time is over, or soon will be (SLURM's --signal=USR1@120).
NOTICES = (signal.SIGTERM, signal.SIGUSR1)


def exit_code(number: int) -> int:
    """The exit code after a signal: a shell's, but REQUEUE after a scheduler's notice."""
    return REQUEUE if number in NOTICES else 128 + number


class Interrupted(BaseException):
    """A signal stopped the process; its work is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = exit_code(number)


def raise_interrupted(number: int, frame: FrameType | None) -> None:
    """A handler for work that can be abandoned at once."""
    del frame
    raise Interrupted(number)


def install_handlers() -> None:
    """Schedulers' signals raise Interrupted, and Ctrl-C at a terminal KeyboardInterrupt.

    The latter also where SIGINT was inherited as ignored, as from `nohup ... &`. What is raised
    where Python ignores exceptions is raised again after it.
    """
    sys.unraisablehook = _raise_again
    for number in NOTICES:  # training, which saves first, notes them itself
        signal.signal(number, raise_interrupted)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and os.isatty(0):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise_again(ignored: sys.UnraisableHookArgs) -> None:
    """Sends a signal again that came during a callback of the garbage collector, or a `__del__`.

    JAX has such a callback; about one in ten signals came there while JAX was imported.
    """
    match ignored.exc_value:
        case Interrupted(number=number):
            pass
        case KeyboardInterrupt():
            number = signal.SIGINT
        case _:
            sys.__unraisablehook__(ignored)
            return
    # From a thread and a little later, as a handler that ran in here would be ignored, too.
    main = threading.main_thread().ident
    threading.Timer(0.05, signal.pthread_kill, (main, number)).start()


class StopRequest:
    """The number of the signal received; 0 before one is."""

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
        """While open, a request raises Interrupted immediately: for work that may be abandoned."""
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
