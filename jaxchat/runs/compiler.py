"""Programs of later stages, compiled in a thread while an earlier stage trains.

They go into JAX's cache of compiled programs, where their stage finds them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

# A stage, and what compiles programs of it, as long as it is not stopped
Program = tuple[str, Callable[[Callable[[], bool]], object]]
LOWEST = 19  # of priorities: it takes what training leaves of the processor


class Compiler:
    """A thread that compiles programs in their order; `close` ends it."""

    def __init__(self, programs: Iterable[Program]) -> None:
        self._left = deque(programs)
        self._stage = ""  # whose programs are being compiled
        self._stopped = False  # what compiles them, after the one that it is at
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="compiler", daemon=True)
        self._thread.start()

    def take(self, stage: str) -> None:
        """Waits for a stage's program that is being compiled; those not begun are left to it."""
        with self._changed:
            self._left = deque(one for one in self._left if one[0] != stage)
            self._stopped |= self._stage == stage
            self._changed.wait_for(lambda: self._stage != stage)

    def close(self) -> None:
        """Leaves out what was not begun, and waits for what was."""
        with self._changed:
            self._left.clear()
            self._stopped = True
        self._thread.join()

    def _work(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while True:
            with self._changed:
                self._stage = ""
                self._changed.notify_all()
                if not self._left:
                    return
                self._stage, compiles = self._left.popleft()
                self._stopped = False
            try:
                compiles(lambda: self._stopped)
            except Exception:  # the stage itself will say what is wrong
                continue
