"""Several engines as one: on each device, side by side on a CPU, or of several processes.

All have the same shapes, so a request gets the same, to the last bit, on any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, cast

import jax

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.engine import Engine
from jaxchat.inference.prefixes import DeviceState
from jaxchat.inference.request import Completion, EngineError, Request
from jaxchat.inference.sequence import SequenceState
from jaxchat.inference.service import Job, Service
from jaxchat.model.backend import backend
from jaxchat.parallel.mesh import gathered
from jaxchat.parallel.process_group import ProcessGroup
from jaxchat.tokenizer.bpe import Tokenizer

LANE_STEPS = 4  # of a dispatch: fewer are wasted behind the end of a row, and the host keeps up


def serving_devices(lanes: int = 1) -> list[jax.Device]:
    """The devices of this process; of a CPU's virtual ones, which share its cores, the first.

    On a CPU that one is there `lanes` times: the operations of a small model are too small to be
    shared by cores, so two engines side by side give almost twice the tokens of one.
    """
    devices: list[jax.Device] = jax.local_devices()
    return devices[:1] * lanes if backend(devices[0].platform).shares_host else devices


def make_service(
    params: Any, config: ModelConfig, tokenizer: Tokenizer, *, lanes: int = 1, **settings: Any
) -> Service:
    """An Engine with `settings`, or Replicas, `slots` on each (see `serving_devices`)."""
    devices = serving_devices(lanes)
    if len(devices) == 1:
        return Engine(params, config, tokenizer, device=devices[0], **settings)
    if devices[0] == devices[1]:  # while one waits for the host, others compute
        settings = {"steps_per_dispatch": LANE_STEPS, **settings}
    return Replicas(params, config, tokenizer, devices=devices, **settings)


class Replicas(Service):
    """Engines on several devices, or several on one, which work at the same time.

    A request is queued here and goes to the engine with most free slots. JAX runs what one thread
    sends to a device in order, one after the other, so each engine's work is sent by a thread of
    its own.
    """

    def __init__(
        self,
        params: Any,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        devices: Sequence[jax.Device] | None = None,
        prefix_bytes: int = 0,
        **settings: Any,
    ) -> None:
        """`settings` are Engine's, `slots` those of each. By default one on every local device.

        `prefix_bytes` of what prompts began with are kept on each device.
        """
        devices = jax.local_devices() if devices is None else devices
        if not devices:
            raise EngineError("devices is empty; name at least one, or leave it out for all.")
        params = gathered(params)
        shared = {device: DeviceState(prefix_bytes) for device in devices}
        self.engines = tuple(
            Engine(params, config, tokenizer, device=device, shared=shared[device], **settings)
            for device in devices
        )
        first = self.engines[0]
        self.config, self.max_len, self.compute = first.config, first.max_len, first.compute
        self.slots = sum(engine.slots for engine in self.engines)
        self._waiting: deque[SequenceState] = deque()
        firsts = {engine.device: engine for engine in reversed(self.engines)}
        self._firsts = tuple(firsts.values())  # one of each device: others share its weights
        self._lanes = [ThreadPoolExecutor(1, "engine") for _ in self.engines]

    @property
    def params(self) -> Any:
        return self.engines[0].params

    @property
    def free(self) -> int:
        return sum(engine.free for engine in self.engines) - len(self._waiting)

    def set_params(self, params: Any) -> None:
        params = gathered(params)
        for engine in self._firsts:
            engine.set_params(params)

    def warm_up(
        self,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[float], object] = lambda share: None,
        *,
        rare: bool | None = None,
    ) -> None:
        def report(done: int, share: float) -> None:
            progress((done + share) / len(self._firsts))

        for number, engine in enumerate(self._firsts):
            engine.warm_up(stopped, partial(report, number), rare=rare)

    def prepare(self, request: Request) -> None:
        for engine in self._firsts:
            engine.prepare(request)

    def check(self, request: Request) -> None:
        self.engines[0].check(request)

    def submit(self, request: Request) -> Job:
        job = self.engines[0].make_job(request)
        self._waiting.extend(job.rows)
        return job

    def cancel(self, job: Job) -> None:
        self._waiting = deque(row for row in self._waiting if row not in job.rows)
        for engine in self.engines:
            engine.cancel(job)

    def step(self) -> bool:
        """One dispatch of every engine (see `Service`), each begun once its last one was read.

        So what is begun here is read in the next step, and the host's work for one engine is done
        while the others compute.
        """
        busy = False
        for engine, lane in zip(self.engines, self._lanes, strict=True):
            engine.finish()
            self._share_out()
            _call(lane, engine)
            busy |= engine.busy
        if busy and not any(engine.in_flight for engine in self.engines):
            next(engine for engine in self.engines if engine.busy).wait()
        return busy or bool(self._waiting)

    def _share_out(self) -> None:
        """Gives what is queued to free slots, samples of one request together if they fit."""
        while self._waiting:
            engine = max(self.engines, key=lambda engine: engine.free)
            if engine.free <= 0:
                return
            request = self._waiting[0].request
            for _ in range(engine.free):
                if not self._waiting or self._waiting[0].request is not request:
                    break
                engine.queue(self._waiting.popleft())


class MultiHostEngine:
    """The engines of several processes as one: each answers its share of the requests.

    It divides what `generate` gets, which all processes must call with the same requests.

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


def _call(lane: ThreadPoolExecutor, engine: Engine) -> None:
    """`engine.start` in the engine's thread; returns only when that has."""
    future = lane.submit(engine.start, wait=False)
    try:
        future.result()
    finally:  # an interrupt ends the waiting, not what it waits for
        wait([future])
