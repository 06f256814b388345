"""A queue in which clients take turns, however many requests each has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First come, first served within a client; clients one after the other."""

    def __init__(self, client: Callable[[T], Hashable]) -> None:
        """`client` says whose an item is."""
        self._client = client
        self._turns: dict[Hashable, deque[T]] = {}  # in the order of the turns

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    def __iter__(self) -> Iterator[T]:
        return (item for items in self._turns.values() for item in items)

    def push(self, item: T) -> None:
        """Puts an item behind the others of its client."""
        self._turns.setdefault(self._client(item), deque()).append(item)

    def peek(self) -> T:
        """What `pop` would give. Raises IndexError when nothing waits."""
        if not self._turns:
            raise IndexError("the queue is empty")
        return next(iter(self._turns.values()))[0]

    def pop(self) -> T:
        """The next item; its client then comes last. Raises IndexError when nothing waits."""
        item = self.peek()
        client = next(iter(self._turns))
        items = self._turns.pop(client)
        items.popleft()
        if items:
            self._turns[client] = items
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out; False when it does not wait."""
        client = self._client(item)
        items = self._turns.get(client, ())
        if item not in items:
            return False
        items = self._turns[client]
        items.remove(item)
        if not items:
            del self._turns[client]
        return True
