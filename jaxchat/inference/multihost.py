"""The engines of several processes as one: each answers its share of the requests.

A request gets the same, to the last bit, from any engine, so it does not matter from which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from jaxchat.inference.request import Completion, Request
from jaxchat.inference.service import Service
from jaxchat.parallel.process_group import ProcessGroup


class MultiHostEngine:
    """Divides what `generate` gets, which all processes must call with the same requests.

    All else is the local engine's: what is submitted to it, it serves for its own process.
    """

    def __init__(self, group: ProcessGroup, local: Service) -> None:
        self.group, self.local = group, local

    @classmethod
    def over(cls, group: ProcessGroup, local: Service) -> Service:
        """The local engine itself where there is one process."""
        return local if group.size == 1 else cast(Service, cls(group, local))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], object] | None = None
    ) -> list[list[Completion]]:
        """The completions of every request, in every process; `progress` is that of this one."""
        size = self.group.size

        def scaled(done: int) -> None:
            if progress is not None:
                progress(min(done * size, len(requests)))

        for request in requests:
            self.local.check(request)
        own = self.local.generate(requests[self.group.index :: size], scaled)
        # numbers come back as they were: JSON has every float's shortest exact form
        shares = self.group.gather([[list(vars(c).values()) for c in row] for row in own])
        found: list[list[Completion]] = [[]] * len(requests)
        for index, share in enumerate(shares):
            found[index::size] = [[Completion(*map(_tuples, c)) for c in row] for row in share]
        return found


def _tuples(value: Any) -> Any:
    """Lists of JSON, at any depth, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
