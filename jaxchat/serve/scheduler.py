"""The thread that owns the engines. Nothing else touches them.

Handlers give it tickets and are told what becomes of them; they never wait for a device. Requests
wait here and not in the engine, so that clients take turns, and one that leaves while it waits
costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Sequence

from jaxchat.config.operations import ServeConfig
from jaxchat.inference.request import EngineError
from jaxchat.inference.service import Job, Service
from jaxchat.serve.failures import ApiError, bad_request, busy, unavailable
from jaxchat.serve.fair_queue import FairQueue
from jaxchat.serve.metrics import Metrics
from jaxchat.serve.models import ServedModel
from jaxchat.serve.ticket import Event, News, Ticket

log = logging.getLogger("jaxchat.serve")

FAILURES = 3  # of an engine, one after the other, before its model is given up
RECENT = 0.2  # weight of the latest request in the mean time of one
LONGEST_WAIT = 60  # seconds that a refused client is told to wait, at most


class _Stopped(Exception):
    """The server ends while it warms up."""


class _Lane:
    """A model's engine, who waits for it and whom it serves."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.engine: Service = model.open_engine()
        self.waiting: FairQueue[Ticket] = FairQueue(lambda ticket: ticket.client)
        self.live: dict[Ticket, tuple[Job, list[int]]] = {}  # tokens told, of each sample
        self.failures = 0

    @property
    def dead(self) -> bool:
        """Whether its engine has failed too often."""
        return self.failures >= FAILURES

    @property
    def active(self) -> int:
        """Samples that hold a slot, or wait in the engine for one."""
        return sum(row.finish_reason is None for job, _ in self.live.values() for row in job.rows)


class Scheduler:
    """Steps the engines in turn, in a thread of its own, from `start` to `stop`."""

    def __init__(
        self, models: Sequence[ServedModel], config: ServeConfig, metrics: Metrics
    ) -> None:
        self._config, self._metrics = config, metrics
        self._lanes = {model.id: _Lane(model) for model in models}
        self._changed = threading.Condition()  # also guards all that both sides touch
        self._closing = False  # takes no more requests
        self._stopping = False
        self._mean_seconds = 1.0  # of a request in the engine
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        metrics.watch(self)

    # What handlers call.

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            return sum(len(lane.waiting) for lane in self._lanes.values())

    @property
    def active(self) -> int:
        """Slots that the engines have given away."""
        return sum(lane.engine.slots - lane.engine.free for lane in self._lanes.values())

    @property
    def slots(self) -> int:
        """Samples that could be."""
        return sum(lane.engine.slots for lane in self._lanes.values())

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""
        return self._ready.is_set() and not self._closing

    @property
    def idle(self) -> bool:
        """Whether nothing is asked of it."""
        with self._changed:
            return not any(lane.live or len(lane.waiting) for lane in self._lanes.values())

    def health(self) -> dict[str, str]:
        """Model -> "ok" or "failed"; empty when the thread is not there."""
        if not self._thread.is_alive():
            return {}
        return {name: "failed" if lane.dead else "ok" for name, lane in self._lanes.items()}

    def submit(self, ticket: Ticket) -> None:
        """Queues a request. Raises ApiError: 429 when too many wait, 503 when it is not served."""
        with self._changed:
            lane = self._lanes[ticket.model.id]
            if self._closing or not self._thread.is_alive():
                raise unavailable("the server is shutting down.", "shutting_down")
            if lane.dead:
                raise _failed(lane.model)
            if sum(len(lane.waiting) for lane in self._lanes.values()) >= self._config.queue:
                self._metrics.rejected.inc()
                raise busy(
                    f"{self._config.queue} requests wait already; try again later.",
                    self._wait(len(lane.waiting), lane.engine.slots),
                )
            lane.waiting.push(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a request, at the next dispatch where it is being decoded."""
        with self._changed:
            lane = self._lanes[ticket.model.id]
            if ticket.cancelled:
                return
            if lane.waiting.remove(ticket) or ticket in lane.live:
                self._metrics.cancelled.inc()
            ticket.cancelled = True
            self._changed.notify()

    def _wait(self, waiting: int, slots: int) -> int:
        """Seconds until so many have been served, about."""
        return min(LONGEST_WAIT, math.ceil(self._mean_seconds * (waiting + 1) / slots))

    # Its life.

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests; those it has go on."""
        with self._changed:
            self._closing = True

    def abort(self) -> None:
        """Ends all requests with an error."""
        self.close()
        with self._changed:
            for lane in self._lanes.values():
                for ticket in [*lane.waiting, *lane.live]:
                    lane.waiting.remove(ticket)
                    ticket.cancelled = True
                    _post([(ticket, unavailable("the server is shutting down.", "shutting_down"))])
            self._changed.notify()

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread, and all requests with an error."""
        self.abort()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # What the thread does.

    def _run(self) -> None:
        try:
            self._work()
        except Exception:
            log.exception("the scheduler failed")
            self.abort()

    def _work(self) -> None:
        self._warm_up()
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._stopping:
                    return
            for lane in self._lanes.values():
                if not lane.dead:
                    self._turn(lane)

    def _warm_up(self) -> None:
        def stopping(done: int, of: int) -> None:
            del done, of
            if self._stopping:
                raise _Stopped

        for lane in self._lanes.values():
            if self._config.warm_up:
                with contextlib.suppress(_Stopped):
                    lane.engine.warm_up(stopping)
        self._ready.set()

    def _has_work(self) -> bool:
        return self._stopping or any(
            lane.live or len(lane.waiting) for lane in self._lanes.values() if not lane.dead
        )

    def _turn(self, lane: _Lane) -> None:
        """One dispatch of a lane."""
        self._drop(lane)
        self._admit(lane)
        if not lane.live:
            return
        try:
            lane.engine.step()
        except Exception:
            log.exception("the engine of %s failed", lane.model.id)
            self._fail(lane)
            return
        lane.failures = 0
        _post(self._collect(lane))

    def _drop(self, lane: _Lane) -> None:
        """Gives the slots of those who left to others, and sends away who waited too long."""
        for ticket in [ticket for ticket in lane.live if ticket.cancelled]:
            with self._changed:
                job, _ = lane.live.pop(ticket)
            lane.engine.cancel(job)
        oldest = time.monotonic() - self._config.queue_seconds
        with self._changed:
            late = [ticket for ticket in lane.waiting if ticket.times.queued < oldest]
            for ticket in late:
                lane.waiting.remove(ticket)
        self._metrics.rejected.inc(len(late))
        seconds = self._wait(len(late), lane.engine.slots)
        message = f"the request waited for more than {self._config.queue_seconds:g} seconds."
        _post([(ticket, unavailable(message, "queue_timeout", seconds)) for ticket in late])

    def _admit(self, lane: _Lane) -> None:
        """Gives free slots to whose turn it is."""
        free = lane.engine.slots - lane.active
        while True:
            with self._changed:
                if not len(lane.waiting):
                    return
                ticket = lane.waiting.peek()
                if free < min(ticket.request.n, lane.engine.slots):
                    return
                lane.waiting.pop()
                try:
                    lane.live[ticket] = (lane.engine.submit(ticket.request), [0] * ticket.request.n)
                except EngineError as error:
                    _post([(ticket, bad_request(str(error)))])
                    continue
            free -= ticket.request.n
            ticket.times.started = time.monotonic()

    def _collect(self, lane: _Lane) -> list[tuple[Ticket, Event]]:
        """What a dispatch has brought; requests that are complete leave."""
        now = time.monotonic()
        found: list[tuple[Ticket, Event]] = []
        for ticket, (job, told) in list(lane.live.items()):
            times = ticket.times
            for index, row in enumerate(job.rows):
                start, told[index] = told[index], len(row.tokens)
                if start == told[index]:
                    continue
                new = slice(start, None)
                news = News(
                    index, row.tokens[new], row.mask[new], row.logprobs[new],
                    row.alternatives[new], row.finish_reason,
                )  # fmt: skip
                self._metrics.tokens.inc(len(news.tokens))
                found.append((ticket, news))
            if times.first is None and any(told):
                times.first = now
                self._metrics.first_token.observe(now - times.queued)
            if job.done:
                self._leave(lane, ticket, now, sum(told))
        return found

    def _leave(self, lane: _Lane, ticket: Ticket, now: float, tokens: int) -> None:
        times = ticket.times
        times.ended = now
        with self._changed:
            del lane.live[ticket]
        if times.started is None or times.first is None:
            return
        seconds = now - times.started
        self._mean_seconds += RECENT * (seconds - self._mean_seconds)
        if tokens > ticket.request.n:
            between = (now - times.first) / (tokens / ticket.request.n - 1)
            self._metrics.between_tokens.observe(between)

    def _fail(self, lane: _Lane) -> None:
        """Tells those who are served; the engine goes on, until it has failed too often."""
        lane.failures += 1
        with self._changed:
            lost, lane.live = lane.live, {}
        for job, _ in lost.values():
            lane.engine.cancel(job)
        message = "the model failed while it answered; try again."
        _post([(ticket, ApiError(500, message, code="engine_failed")) for ticket in lost])
        if not lane.dead:
            return
        with self._changed:
            waiting = list(lane.waiting)
            for ticket in waiting:
                lane.waiting.remove(ticket)
        _post([(ticket, _failed(lane.model)) for ticket in waiting])


def _failed(model: ServedModel) -> ApiError:
    return unavailable(f"the model {model.id} has failed; start the server again.", "model_failed")


def _post(events: Sequence[tuple[Ticket, Event]]) -> None:
    """Tells tickets, each in its loop; one call for all of a loop."""
    by_loop: dict[int, list[tuple[Ticket, Event]]] = {}
    for ticket, event in events:
        by_loop.setdefault(id(ticket.loop), []).append((ticket, event))
    for some in by_loop.values():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            some[0][0].loop.call_soon_threadsafe(_tell, some)


def _tell(events: Sequence[tuple[Ticket, Event]]) -> None:
    for ticket, event in events:
        ticket.tell(event)
