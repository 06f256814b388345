"""How many programs an evaluation has under way at a time (layer 3)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

AHEAD = 2  # so that a device never waits for Python; many more would fill its memory with batches

Result = TypeVar("Result")


def in_flight(results: Iterator[Result], ahead: int = AHEAD) -> Iterator[Result]:
    """The same results, each given out when `ahead` more have been dispatched.

    Whoever reads what is given out waits for it, so never more than `ahead` + 1 are under way. On
    virtual devices of a CPU hundreds of programs at once, each with a collective, block each other
    until XLA ends the process.
    """
    waiting = deque(itertools.islice(results, ahead))
    for result in results:
        waiting.append(result)
        yield waiting.popleft()
    yield from waiting
