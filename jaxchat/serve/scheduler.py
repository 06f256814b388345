"""The scheduler: a queue for each model, and the thread that owns the engines.

Nothing else touches the engines. Handlers submit pending requests and get events; they never wait
for a device. Requests wait here and not in the engine, so that clients take turns, and one that is
cancelled while it waits costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol

from jaxchat.config.operations import ServeConfig
from jaxchat.inference import jitted
from jaxchat.inference.request import EngineError, Request
from jaxchat.inference.service import Job, Service
from jaxchat.model.chunks import CHUNK
from jaxchat.serve.fair_queue import FairQueue
from jaxchat.serve.metrics import Metrics
from jaxchat.serve.models import ServedModel
from jaxchat.serve.schema import ApiError, bad_request, busy, unavailable
from jaxchat.serve.scoring import PendingScores, ScoringQueue
from jaxchat.serve.streaming import Event, PendingRequest, TokenDelta

log = logging.getLogger("jaxchat.serve")

FAILURES = 3  # of an engine, one after the other, before its model is given up
RECENT = 0.2  # weight of the latest request in the mean time of one
QUIET_SECONDS = 0.5  # without a request, after which what few requests need is compiled
TRIAL_SECONDS = 0.5  # after which no further answer is tried before the server is ready
LONGEST_WAIT = 60  # seconds, of a Retry-After header


class Recipient(Protocol):
    """Whom the thread posts events to."""

    def post(self, event: Any) -> None:
        """Takes an event; called in the server's loop."""


Posted = tuple[Recipient, Any]


class _ModelQueue:
    """A model's engine, the requests that wait for it, and those that it serves."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.engine: Service = model.open_engine()
        self.waiting = FairQueue()
        self.live: dict[PendingRequest, tuple[Job, list[int]]] = {}  # tokens sent, of each sample
        self.scoring = ScoringQueue(model.evaluated)
        self.failures = 0
        self.cold = False  # programs that few requests need are still to be compiled

    @property
    def busy(self) -> bool:
        """Whether there is any request."""
        return bool(self.live or len(self.waiting) or len(self.scoring))

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
        self._queues = {model.id: _ModelQueue(model) for model in models}
        self._changed = threading.Condition()  # also guards all that both sides touch
        self._closing = False  # takes no more requests
        self._stopping = False
        self._mean_seconds = 1.0  # of a request in the engine
        self._ready = threading.Event()
        self._compiled = 0.0  # share of the programs that are compiled before it is ready
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        metrics.gauge("queue_depth", "Requests that wait", lambda: self.waiting)
        metrics.gauge("active", "Completions being decoded", lambda: self.active)
        metrics.gauge("slots", "Completions that can be decoded at once", lambda: self.slots)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            return sum(len(q.waiting) + len(q.scoring) for q in self._queues.values())

    @property
    def active(self) -> int:
        """Slots in use."""
        return sum(queue.engine.slots - queue.engine.free for queue in self._queues.values())

    @property
    def slots(self) -> int:
        """Slots of all engines."""
        return sum(queue.engine.slots for queue in self._queues.values())

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""
        return self._ready.is_set() and not self._closing

    @property
    def compiled(self) -> float:
        """The share of its programs that are compiled, from 0 to 1 once it is ready."""
        return 1.0 if self._ready.is_set() else self._compiled

    def not_ready(self) -> ApiError:
        """Why it takes no requests, and when to try again."""
        if self._closing:
            return _shutting_down()
        passed = time.monotonic() - self._began
        left = passed / max(self._compiled, 0.01) - passed
        return unavailable(
            f"the server is compiling its programs ({self.compiled:.0%} done); try again later.",
            "not_ready",
            min(LONGEST_WAIT, math.ceil(left) + 1),
        )

    @property
    def idle(self) -> bool:
        """Whether there is no request."""
        with self._changed:
            return not any(queue.busy for queue in self._queues.values())

    def health(self) -> dict[str, str]:
        """Model -> "ok" or "failed"; empty when the thread does not run."""
        if not self._thread.is_alive():
            return {}
        return {name: "failed" if queue.dead else "ok" for name, queue in self._queues.items()}

    def submit(self, pending: PendingRequest) -> None:
        """Queues a request. Raises ApiError: 429 if the queue is full, 503 if nothing serves it."""
        with self._changed:
            self._open_queue(pending.model).waiting.push(pending)
            self._changed.notify()

    def submit_scores(self, pending: PendingScores, model: ServedModel) -> None:
        """Queues prompts to be scored. Raises as `submit` does."""
        with self._changed:
            self._open_queue(model).scoring.push(pending)
            self._changed.notify()

    def _open_queue(self, model: ServedModel) -> _ModelQueue:
        queue = self._queues[model.id]
        if self._closing or not self._thread.is_alive():
            raise _shutting_down()
        if not self.ready:
            raise self.not_ready()
        if queue.dead:
            raise _failed(queue.model)
        if self.waiting >= self._config.queue:
            self._metrics.rejected.inc()
            raise busy(
                f"{self._config.queue} requests wait already; try again later.",
                self._wait(len(queue.waiting), queue.engine.slots),
            )
        return queue

    def cancel(self, pending: PendingRequest) -> None:
        """Drops a request; one that is being decoded, at the next dispatch."""
        with self._changed:
            queue = self._queues[pending.model.id]
            if pending.cancelled:
                return
            if queue.waiting.remove(pending) or pending in queue.live:
                self._metrics.cancelled.inc()
            pending.cancelled = True
            self._changed.notify()

    def cancel_scores(self, pending: PendingScores) -> None:
        """Drops prompts that wait to be scored."""
        with self._changed:
            if any(queue.scoring.remove(pending) for queue in self._queues.values()):
                self._metrics.cancelled.inc()

    def _wait(self, waiting: int, slots: int) -> int:
        """Estimated seconds until `waiting` requests and one more have been served."""
        return min(LONGEST_WAIT, math.ceil(self._mean_seconds * (waiting + 1) / slots))

    # Lifecycle.

    def start(self) -> None:
        """Starts the thread; called in the server's loop, which its events are posted into."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests; those it has are completed."""
        with self._changed:
            self._closing = True

    def abort(self) -> None:
        """Ends all requests with an error."""
        self.close()
        with self._changed:
            for queue in self._queues.values():
                for pending in [*queue.waiting, *queue.live]:
                    queue.waiting.remove(pending)
                    pending.cancelled = True
                    self._post([(pending, _shutting_down())])
                for scores in queue.scoring:
                    queue.scoring.remove(scores)
                    self._post([(scores, _shutting_down())])
            self._changed.notify()

    def stop(self, timeout: float = 10.0) -> None:
        """Ends the thread, and all requests with an error."""
        self.abort()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # The thread.

    def _run(self) -> None:
        try:
            self._warm_up()
            while self._wait_for_work():
                for queue in self._queues.values():
                    if not queue.dead:
                        self._turn(queue)
        except Exception:
            log.exception("the scheduler failed")
            self.abort()

    def _warm_up(self) -> None:
        count = len(self._queues)

        def warm(engine: Service, done: int) -> None:
            def progress(share: float) -> None:
                self._compiled = (done + share) / count

            engine.warm_up(lambda: self._stopping, progress, rare=False)
            try:
                _try_out(engine)
            except Exception:
                log.exception("an answer that was tried before any request failed")

        for number, queue in enumerate(self._queues.values()):
            if self._config.warm_up:
                warm(queue.engine, number)
                queue.cold = True
        self._ready.set()

    def _warm_up_rest(self) -> None:
        """Compiles what few requests need, while there is none at all."""

        def busy() -> bool:
            return self._stopping or any(queue.busy for queue in self._queues.values())

        for queue in self._queues.values():
            if queue.cold and not queue.dead and not busy():
                try:
                    queue.engine.warm_up(busy, rare=True)
                except Exception:
                    log.exception("programs of %s were not compiled beforehand", queue.model.id)
                    queue.cold = False
                else:
                    queue.cold = busy()

    def _wait_for_work(self) -> bool:
        """Whether there is any; False once the thread is to stop."""
        queues = self._queues.values()

        def busy() -> bool:
            return self._stopping or any(queue.busy and not queue.dead for queue in queues)

        with self._changed:
            # not between the answers of a client that asks again at once
            self._changed.wait_for(busy, QUIET_SECONDS)
        self._warm_up_rest()
        with self._changed:
            self._changed.wait_for(busy)
            return not self._stopping

    def _turn(self, queue: _ModelQueue) -> None:
        """One dispatch for a model."""
        self._drop(queue)
        self._admit(queue)
        self._score(queue)
        if not queue.live:
            return
        try:
            queue.engine.step()
        except Exception:
            log.exception("the engine of %s failed", queue.model.id)
            self._fail(queue)
            return
        queue.failures = 0
        self._post(self._collect(queue))

    def _score(self, queue: _ModelQueue) -> None:
        """Scores about one batch of the prompts that wait for it."""
        with self._changed:
            batch = queue.scoring.take()
        if not batch:
            return
        ended = queue.scoring.compute(batch)
        with self._changed:
            left = [(scores, error) for scores, error in ended.items() if scores in queue.scoring]
            for scores, _ in left:
                queue.scoring.remove(scores)
        self._post(left)

    def _drop(self, queue: _ModelQueue) -> None:
        """Frees the slots of cancelled requests, and refuses those that waited too long."""
        for pending in [pending for pending in queue.live if pending.cancelled]:
            with self._changed:
                job, _ = queue.live.pop(pending)
            queue.engine.cancel(job)
        oldest = time.monotonic() - self._config.queue_seconds
        with self._changed:
            late = [pending for pending in queue.waiting if pending.queued < oldest]
            for pending in late:
                queue.waiting.remove(pending)
        self._metrics.rejected.inc(len(late))
        seconds = self._wait(len(late), queue.engine.slots)
        message = f"the request waited for more than {self._config.queue_seconds:g} seconds."
        self._post([(pending, unavailable(message, "queue_timeout", seconds)) for pending in late])

    def _admit(self, queue: _ModelQueue) -> None:
        """Gives free slots to the requests whose turn it is."""
        free = queue.engine.slots - queue.active
        while True:
            with self._changed:
                if not len(queue.waiting):
                    return
                pending = queue.waiting.peek()
                if free < min(pending.request.n, queue.engine.slots):
                    return
                queue.waiting.pop()
                try:
                    queue.live[pending] = (
                        queue.engine.submit(pending.request),
                        [0] * pending.request.n,
                    )
                except EngineError as error:
                    self._post([(pending, bad_request(str(error)))])
                    continue
            free -= pending.request.n
            pending.started = time.monotonic()

    def _collect(self, queue: _ModelQueue) -> list[tuple[PendingRequest, Event]]:
        """The new tokens of a dispatch; requests that are complete are removed."""
        now = time.monotonic()
        found: list[tuple[PendingRequest, Event]] = []
        for pending, (job, sent) in list(queue.live.items()):
            for index, row in enumerate(job.rows):
                start, sent[index] = sent[index], len(row.tokens)
                if start == sent[index]:
                    continue
                new = slice(start, None)
                delta = TokenDelta(
                    index, row.tokens[new], row.mask[new], row.logprobs[new],
                    row.alternatives[new], row.finish_reason,
                )  # fmt: skip
                self._metrics.tokens.inc(len(delta.tokens))
                found.append((pending, delta))
            if pending.first is None and any(sent):
                pending.first, pending.known = now, job.rows[0].known
                self._metrics.cached_tokens.inc(pending.known)
                self._metrics.first_token.observe(now - pending.queued)
            if job.done:
                self._leave(queue, pending, now, sum(sent))
        return found

    def _leave(self, queue: _ModelQueue, pending: PendingRequest, now: float, tokens: int) -> None:
        pending.ended = now
        with self._changed:
            del queue.live[pending]
        if pending.started is None or pending.first is None:
            return
        seconds = now - pending.started
        self._mean_seconds += RECENT * (seconds - self._mean_seconds)
        if tokens > pending.request.n:
            between = (now - pending.first) / (tokens / pending.request.n - 1)
            self._metrics.between_tokens.observe(between)

    def _fail(self, queue: _ModelQueue) -> None:
        """Ends the live requests with an error; the waiting too, if the engine failed too often."""
        queue.failures += 1
        with self._changed:
            lost, queue.live = queue.live, {}
        for job, _ in lost.values():
            queue.engine.cancel(job)
        message = "the model failed while it answered; try again."
        self._post([(pending, ApiError(500, message, code="engine_failed")) for pending in lost])
        if not queue.dead:
            return
        with self._changed:
            waiting = list(queue.waiting)
            for pending in waiting:
                queue.waiting.remove(pending)
        self._post([(pending, _failed(queue.model)) for pending in waiting])

    def _post(self, events: Sequence[Posted]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(_post_all, events)


def _try_out(engine: Service) -> None:
    """Answers prompts of several lengths that nobody has asked, the shortest first.

    A program's first calls take some 10 ms more: no request waits for them. Where answers take
    long they do not matter, and little is tried.
    """
    ends = time.monotonic() + TRIAL_SECONDS
    for length in 2 * jitted.buckets(jitted.MIN_PROMPT, min(CHUNK, engine.max_len)):
        if time.monotonic() < ends:
            tokens = (0,) * (length // 2 + 2)  # padded to `length`, and kept by nobody
            engine.generate([Request(tokens, max_tokens=length // 2)])


def _shutting_down() -> ApiError:
    return unavailable("the server is shutting down.", "shutting_down")


def _failed(model: ServedModel) -> ApiError:
    return unavailable(f"the model {model.id} has failed; restart the server.", "model_failed")


def _post_all(events: Sequence[Posted]) -> None:
    for pending, event in events:
        pending.post(event)
