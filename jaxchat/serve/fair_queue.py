"""A queue in which clients take turns."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator

from jaxchat.serve.streaming import PendingRequest


class FairQueue:
    """A queue in which clients take turns, however many requests each has."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, deque[PendingRequest]] = OrderedDict()  # by client

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    def __iter__(self) -> Iterator[PendingRequest]:
        return itertools.chain.from_iterable(self._turns.values())

    def push(self, pending: PendingRequest) -> None:
        """Puts a request behind the others of its client."""
        self._turns.setdefault(pending.client, deque()).append(pending)

    def peek(self) -> PendingRequest:
        """The request that `pop` would give. Raises IndexError when nothing waits."""
        if not self._turns:
            raise IndexError("the queue is empty")
        return next(iter(self))

    def pop(self) -> PendingRequest:
        """The next request; its client then comes last. Raises IndexError when nothing waits."""
        pending = self.peek()
        self.remove(pending)
        if pending.client in self._turns:
            self._turns.move_to_end(pending.client)
        return pending

    def remove(self, pending: PendingRequest) -> bool:
        """Takes a request out; False when it does not wait."""
        waiting = self._turns.get(pending.client, deque())
        if pending not in waiting:
            return False
        waiting.remove(pending)
        if not waiting:
            del self._turns[pending.client]
        return True
