"""The engines of several processes as one: each answers its share of the requests (layer 3).

A request gets the same, to the last bit, from any engine, so it does not matter from which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxchat.inference.request import Completion, Request
from jaxchat.inference.service import Job, Service
from jaxchat.model.backend import Compute
from jaxchat.parallel.process_group import ProcessGroup


class Spread(Service):
    """Shares out what `generate` is given, which all processes must call with the same requests.

    All else is the local engine's: what is submitted to it, it serves for its own process.
    """

    def __init__(self, group: ProcessGroup, local: Service) -> None:
        self.group, self.local = group, local
        self.config, self.slots, self.max_len = local.config, local.slots, local.max_len

    @classmethod
    def over(cls, group: ProcessGroup, local: Service) -> Service:
        """The local engine itself where there is one process."""
        return local if group.size == 1 else cls(group, local)

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], object] | None = None
    ) -> list[list[Completion]]:
        """The completions of every request, as everywhere; `progress` is that of this process."""
        size = self.group.size

        def told(done: int) -> None:
            if progress is not None:
                progress(min(done * size, len(requests)))

        for request in requests:
            self.check(request)
        mine = self.local.generate(requests[self.group.index :: size], told)
        shares = self.group.gather([[_to_json(c) for c in row] for row in mine])
        found: list[list[Completion]] = [[]] * len(requests)
        for index, share in enumerate(shares):
            found[index::size] = [[_from_json(c) for c in row] for row in share]
        return found

    @property
    def params(self) -> Any:
        """The weights, as they are computed with."""
        return self.local.params

    @property
    def compute(self) -> Compute:
        """How whole rows are computed."""
        return self.local.compute

    @property
    def free(self) -> int:
        """Free slots of this process."""
        return self.local.free

    def warm_up(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Compiles this process's programs."""
        self.local.warm_up(progress)

    def set_params(self, params: Any) -> None:
        """Takes other weights; where they are split over processes, all must call this."""
        self.local.set_params(params)

    def check(self, request: Request) -> None:
        """Raises EngineError if a request does not fit."""
        self.local.check(request)

    def submit(self, request: Request) -> Job:
        """Queues a request of this process."""
        return self.local.submit(request)

    def cancel(self, job: Job) -> None:
        """Drops what is unfinished of a job of this process."""
        self.local.cancel(job)

    def step(self) -> bool:
        """A step of this process's engine."""
        return self.local.step()


def _to_json(completion: Completion) -> list[Any]:
    """Numbers come back as they were: JSON has every float's shortest exact form."""
    c = completion
    return [c.tokens, c.mask, c.logprobs, c.finish_reason, c.alternatives]


def _from_json(value: list[Any]) -> Completion:
    tokens, mask, logprobs, reason, alternatives = value
    return Completion(tuple(tokens), tuple(mask), tuple(logprobs), reason, _tuples(alternatives))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
