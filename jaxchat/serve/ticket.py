"""A request on its way: what the scheduler works on, and what a handler waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from jaxchat.inference.engine import Request
from jaxchat.inference.request import Alternatives, FinishReason
from jaxchat.serve.failures import ApiError
from jaxchat.serve.models import ServedModel


@dataclass(frozen=True)
class News:
    """New tokens of one sample; the sequences have one entry for each."""

    index: int  # of the sample
    tokens: Sequence[int]
    mask: Sequence[int]  # 1 sampled, 0 put there by a tool
    logprobs: Sequence[float]
    alternatives: Sequence[Alternatives]
    finish_reason: FinishReason | None


@dataclass
class Times:
    """Seconds of `time.monotonic`; None: not yet."""

    queued: float
    started: float | None = None  # given to the engine
    first: float | None = None  # had its first token
    ended: float | None = None


Event = News | ApiError | None  # None: whoever asked has gone


@dataclass(eq=False)
class Ticket:
    """A request in the scheduler. Its events come in the loop that made it."""

    model: ServedModel
    request: Request
    client: str
    times: Times
    cancelled: bool = False
    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where its events are handled."""
        return self._loop

    def tell(self, event: Event) -> None:
        """Adds an event; in its loop only."""
        self._events.put_nowait(event)

    async def news(self) -> AsyncIterator[News]:
        """What comes, until every sample has ended. Raises ApiError, also where the client left."""
        unfinished = self.request.n
        while unfinished:
            event = await self._events.get()
            if event is None:
                raise GoneError
            if isinstance(event, ApiError):
                raise event
            unfinished -= event.finish_reason is not None
            yield event


class GoneError(ApiError):
    """The client has left: nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client has closed the connection.", code="client_gone")
