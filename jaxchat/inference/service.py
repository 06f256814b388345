"""What an engine and several engines as one have in common: jobs, and ways to wait for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.request import Completion, EngineError, Request
from jaxchat.inference.sequence import SequenceState
from jaxchat.inference.stop_strings import StopWatch
from jaxchat.model.backend import Compute
from jaxchat.tokenizer.bpe import Tokenizer


class Job:
    """A submitted request; its rows fill up with every step of the engine."""

    def __init__(self, request: Request, limit: int, tokenizer: Tokenizer) -> None:
        self.request = request
        self.rows = [SequenceState(request, stream, limit) for stream in range(request.n)]
        for row in self.rows:
            row.matcher = request.grammar.matcher() if request.grammar else None
            row.forced_tokens.extend(row.matcher.begin() if row.matcher else ())
            row.stops = StopWatch(request.stop, tokenizer) if request.stop else None

    @property
    def done(self) -> bool:
        """Whether every sample has ended."""
        return all(row.finish_reason for row in self.rows)


class Service(ABC):
    """Serves requests: an engine, or several as one. One thread at a time may use it."""

    config: ModelConfig
    slots: int
    max_len: int  # of a prompt and its completion
    compute: Compute  # how whole rows are computed

    @property
    @abstractmethod
    def params(self) -> Any:
        """The weights in the dtype in which they are computed."""

    @property
    @abstractmethod
    def free(self) -> int:
        """Slots that neither a row nor one that is queued will take."""

    @abstractmethod
    def warm_up(
        self,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[float], object] = lambda share: None,
        *,
        rare: bool | None = None,
    ) -> None:
        """Compiles every program, so that no request waits for that, or as many as come before
        `stopped` says so; `progress` is called with the share that is done.

        `rare`: only those that few requests need (top-k, alternatives, grammars, penalties), or
        only the rest. Raises EngineError while requests are under way.
        """

    def prepare(self, request: Request) -> None:
        """Compiles, side by side, what is needed for a request's first tokens, while none is under
        way; not by services of several processes.
        """
        del request

    @abstractmethod
    def set_params(self, params: Any) -> None:
        """Takes other weights of the same shapes; nothing is compiled again.

        They may share memory with `params`: a caller that donates those must give a copy. Requests
        that are under way continue with the new weights. Weights that are split over a mesh are
        put together; where that is one of several processes, all must call this.
        """

    @abstractmethod
    def check(self, request: Request) -> None:
        """Raises EngineError if a request does not fit."""

    @abstractmethod
    def submit(self, request: Request) -> Job:
        """Queues a request; `step` then works on it. Raises EngineError if it does not fit."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Drops what is unfinished of a job, at once."""

    @abstractmethod
    def step(self) -> bool:
        """Gives free slots to queued rows, then decodes one dispatch. False: nothing is left.

        Where all rows wait for tools it waits a moment too. Whatever is raised in it, a device's
        error or an interrupt: what was in slots is dropped as by `cancel`, what is queued stays,
        and the engine remains usable.
        """

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], object] | None = None
    ) -> list[list[Completion]]:
        """The completions of every request, `n` each, in the order of the requests.

        `progress` gets how many requests are done. Raises EngineError, before anything runs, for
        a request that does not fit.
        """
        for request in requests:
            self.check(request)
        jobs = [self.submit(request) for request in requests]
        left = jobs
        try:
            while left:
                self.step()
                left = [job for job in left if not job.done]
                if progress is not None:
                    progress(len(jobs) - len(left))
        finally:
            for job in left:
                self.cancel(job)
        return [[row.completion for row in job.rows] for job in jobs]

    def stream(self, request: Request) -> Iterator[list[int]]:
        """New ids of one completion as they come, those of tools included.

        To stop early, close the iterator. Raises EngineError where n is not 1.
        """
        if request.n != 1:
            raise EngineError(f"n is {request.n}; a stream has one sample. Use generate.")
        job = self.submit(request)
        (row,), sent = job.rows, 0
        try:
            while not job.done or sent < len(row.tokens):
                if sent == len(row.tokens):
                    self.step()
                new = row.tokens[sent:]  # others may step the engine between two pieces
                sent += len(new)
                if new:
                    yield new
        finally:
            self.cancel(job)
