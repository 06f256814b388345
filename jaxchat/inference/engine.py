"""The engine: many requests at once through one model, with tools (layer 3).

It has a fixed number of slots. A request waits until slots are free, its prompt is read once for
all its samples, and each sample then decodes in a slot of its own beside whatever the other slots
hold, until it ends and gives the slot to the next. Every shape is one of a few buckets, so that
little is compiled; what a request gets does not depend on its company, to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.batch import (
    MIN_PROMPT,
    MIN_SPAN,
    alternatives_for,
    bucket,
    buckets,
    padded,
    picks_of,
    rows_for,
    slots_to_fill,
    truncates,
)
from jaxchat.inference.jitted import Emitted, decode_steps, place_prompt, read_prompt, resize_cache
from jaxchat.inference.request import MAX_ALTERNATIVES, Completion, EngineError, Request, cut_prompt
from jaxchat.inference.sequence import Row
from jaxchat.inference.service import Job, Service
from jaxchat.inference.shared import Shared
from jaxchat.inference.tool_dispatch import TOOL_SECONDS, Toolbox
from jaxchat.inference.weights import on_device
from jaxchat.model.attention import choose_attention
from jaxchat.model.backend import Compute
from jaxchat.model.kernels.matmul import Products
from jaxchat.model.kv_cache import Cache, init_cache, slots_of, whole_blocks
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tools.calculator import run_tool
from jaxchat.tools.executor import Tool

__all__ = ["Completion", "Engine", "EngineError", "Job", "Request"]
# Dispatches for which fewer slots would do, before the cache is made smaller. To make it smaller
# and larger again moves it twice; a dispatch would read what is too much in each of its steps.
PATIENCE = 2
ROUNDED_SLOTS = 8  # XLA multiplies a row or a few faster in float32: docs/log.md, 2026-11-24


class Engine(Service):
    """Serves requests with one set of weights, on one device."""

    _cache: Cache  # donated by every dispatch that gives a new one
    _span: int  # its slots: as many as its rows need, of `_spans`
    _roomy: int  # dispatches for which fewer would have done

    def __init__(
        self,
        params: Any,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        slots: int = 64,
        max_len: int | None = None,
        dtype: DTypeLike = jnp.float32,
        products: Products = "plain",
        tools: Tool = run_tool,
        tool_timeout: float = TOOL_SECONDS,
        steps_per_dispatch: int = 8,
        device: jax.Device | None = None,
        shared: Shared | None = None,
    ) -> None:
        """`max_len` (the model's context by default) holds a prompt and its completion.

        The calculator answers at once; any other of the `tools` is called in a thread, at most for
        `tool_timeout` seconds. Engines of one device may have a `shared`; where that has weights,
        `params` are not looked at. Ids that the tokenizer does not have are never given. Raises
        EngineError when it has ids that the model does not know.

        `products` of bfloat16 are for ROUNDED_SLOTS and more; fewer are decoded in `dtype`.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the model only "
                f"{config.vocab_size}; give the tokenizer that the model was trained with."
            )
        self._trained = config  # which may have more ids than the tokenizer
        self.config = replace(config, vocab_size=tokenizer.vocab_size)
        self.dtype, self.slots = jnp.dtype(dtype), slots
        self._products: Products = products if slots >= ROUNDED_SLOTS else "plain"
        self.max_len = max_len or config.sequence_len
        self._steps = steps_per_dispatch
        self.device = device or jax.local_devices()[0]
        self._toolbox = Toolbox(tools, tokenizer, timeout=tool_timeout)
        specials = self._toolbox.specials
        self._pauses = (*specials.stops, specials.python_end)
        self._shared = shared or Shared()
        self._attention = choose_attention(config.head_dim, self.dtype, self._products)
        self._spans = buckets(MIN_SPAN, whole_blocks(self.max_len))  # slots the cache may have
        self._rows: list[Row | None] = [None] * slots
        self._waiting: deque[Row] = deque()
        self._flying: tuple[Emitted, list[Row | None]] | None = None
        if self._shared.params is None:
            self.set_params(params)
        self._make_cache()

    @property
    def params(self) -> Any:
        """The weights, in the engine's dtype."""
        return self._shared.params

    @property
    def compute(self) -> Compute:
        """How whole rows are computed."""
        return Compute(dtype=self.dtype, attention=self._attention, products=self._products)

    @property
    def free(self) -> int:
        """Slots that neither a row nor one that is queued will take."""
        return self._rows.count(None) - len(self._waiting)

    @property
    def max_compilations(self) -> int:
        """How many programs of the engine's shapes there are: to read, to place and to decode."""
        return sum(1 for _ in self._programs())

    def set_params(self, params: Any) -> None:
        """Takes other weights of the same shapes; nothing is compiled again (see `Service`).

        Those who share them have them too.
        """
        placed = on_device(params, self.device, self.dtype, self._products)
        known, _ = cut_vocabulary(placed, self._trained, self.config.vocab_size)
        self._shared.set_params(known)

    def warm_up(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Compiles every program, so that no request waits for that.

        `progress` is told how many are there and of how many. Raises EngineError while requests are
        under way.
        """
        if any(self._rows) or self._waiting:
            raise EngineError("warm_up was called with requests under way; call it before them.")
        programs = list(self._programs())
        for number, program in enumerate(programs):
            program()
            self._flying = None
            jax.block_until_ready(self._cache.length)
            if progress is not None:
                progress(number + 1, len(programs))
        self._make_cache()

    def submit(self, request: Request) -> Job:
        """Queues a request; `step` then works on it. Raises EngineError if it does not fit."""
        job = self.make_job(request)
        self._waiting.extend(job.rows)
        return job

    def make_job(self, request: Request) -> Job:
        """A job that is not queued. Raises EngineError if the request does not fit."""
        self.check(request)
        if request.cut:
            bos = self._toolbox.specials.bos
            size = {"max_tokens": request.max_tokens, "context": self.max_len}
            request = replace(request, tokens=cut_prompt(request.tokens, bos=bos, **size))
        limit = min(request.max_tokens, self.max_len - len(request.tokens))
        return Job(request, limit, self._toolbox.tokenizer)

    def queue(self, row: Row) -> None:
        """Queues one row of a job."""
        self._waiting.append(row)

    def cancel(self, job: Job) -> None:
        """Drops what is unfinished of a job, at once."""
        for row in job.rows:
            self._toolbox.forget(row)
        self._rows = [None if row in job.rows else row for row in self._rows]
        self._waiting = deque(row for row in self._waiting if row not in job.rows)

    def step(self) -> bool:
        """One dispatch: see `Service`."""
        self.start()
        return self.finish()

    @property
    def busy(self) -> bool:
        """Whether there is a row, in a slot or queued."""
        return any(self._rows) or bool(self._waiting)

    @property
    def flying(self) -> bool:
        """Whether there is a dispatch to `finish`."""
        return self._flying is not None

    def wait(self) -> None:
        """A moment, or until a tool has answered."""
        self._toolbox.wait()

    def start(self, *, wait: bool = True) -> None:
        """The first half of `step`, which waits for tools at most, and not for the device."""
        try:
            self._admit()
            rows = [row for row in self._rows if row is not None]
            self._toolbox.collect(rows)
            if any(not row.waits for row in rows):
                self._decode(rows)
            elif rows and wait:
                self.wait()
        except BaseException:
            self._abandon()
            raise

    def finish(self) -> bool:
        """The second half of `step`: takes what the device has found."""
        try:
            if self._flying is not None:
                (emitted, rows), self._flying = self._flying, None
                for slot, (row, picks) in enumerate(zip(rows, picks_of(emitted), strict=True)):
                    if row is not None and row is self._rows[slot]:  # else it was cancelled
                        self._take(slot, row, picks)
        except BaseException:
            self._abandon()
            raise
        return self.busy

    def check(self, request: Request) -> None:
        """Raises EngineError if a request does not fit."""
        length = len(request.tokens)
        if length > self.max_len - 1 and not request.cut:
            raise EngineError(
                f"the prompt has {length} tokens, and the context of {self.max_len} leaves room "
                f"for {self.max_len - 1} and one to answer; shorten the prompt, or let it be cut."
            )
        if not all(0 <= token < self.config.vocab_size for token in request.tokens):
            raise EngineError(
                f"the prompt has a token outside the vocabulary of {self.config.vocab_size}; "
                "encode it with the model's tokenizer."
            )

    def read(self, tokens: tuple[int, ...]) -> Cache:
        """The cache after `tokens`: a prompt but its last one, which is decoded like its answer."""
        length = bucket(len(tokens), MIN_PROMPT, self.max_len)
        prompt: Cache = read_prompt(
            self.params,
            *padded(tokens, length),
            config=self.config,
            dtype=self.dtype,
            attention=self._attention,
            products=self._products,
        )
        return prompt

    def _admit(self) -> None:
        """Fills free slots from the queue; samples of one request share what is read."""
        free = deque(slot for slot, row in enumerate(self._rows) if row is None)
        while free and self._waiting:
            request, slots = self._waiting[0].request, []
            while free and self._waiting and self._waiting[0].request is request:
                slots.append(free.popleft())
                self._rows[slots[-1]] = self._waiting.popleft()
            read = partial(self.read, request.tokens[:-1])
            self._place(self._shared.prompt(request, read), slots)

    def _place(self, prompt: Cache, slots: Sequence[int]) -> None:
        length = max(layer.shape[2] for layer in prompt.k)
        if length > self._span:
            self._resize(self._span_for(length))
        self._cache = place_prompt(self._cache, prompt, slots_to_fill(slots, self.slots))

    def _decode(self, rows: list[Row]) -> None:
        """Begins one dispatch of decode steps for all slots."""
        reach = max(row.position for row in rows) + self._steps
        self._fit(self._span_for(reach))
        self._dispatch(truncates(rows), alternatives_for(rows, self.config))

    def _span_for(self, positions: int) -> int:
        return bucket(positions, MIN_SPAN, self._spans[-1])

    def _fit(self, span: int) -> None:
        """Gives the cache more slots where rows need them; fewer only when that lasts."""
        self._roomy = self._roomy + 1 if span < self._span else 0
        if span > self._span or self._roomy > PATIENCE:
            self._resize(span)

    def _resize(self, span: int) -> None:
        if span != self._span:
            self._cache = resize_cache(self._cache, slots=slots_of(self.config, span))
        self._span, self._roomy = span, 0

    def _dispatch(self, truncate: bool, alternatives: int) -> None:
        self._cache, emitted = decode_steps(
            self.params,
            self._cache,
            rows_for(self._rows, self._steps).packed(),
            config=self.config,
            dtype=self.dtype,
            products=self._products,
            pauses=self._pauses,
            truncate=truncate,
            alternatives=alternatives,
        )
        self._flying = emitted, list(self._rows)

    def _take(self, slot: int, row: Row, picks: list[Any]) -> None:
        """Gives a row its tokens; past a stop text, which the device does not see, none."""
        for token, logprob, others in picks:
            code = row.take(token, logprob, others, self._toolbox.specials)
            if code is not None:
                self._toolbox.ask(row, code)
            if row.finish_reason:
                self._rows[slot] = None
                return

    def _programs(self) -> Iterator[Callable[[], object]]:
        """Calls that together compile everything; they change no row."""

        lengths = buckets(MIN_PROMPT, self.max_len)
        prompts = [(0,) * length for length in lengths]
        most = min(MAX_ALTERNATIVES, self.config.vocab_size)
        for prompt in prompts:
            yield partial(self.read, prompt)
        for span in self._spans:
            for other in self._spans:  # from there to here
                if other != span:
                    yield partial(lambda *spans: [*map(self._resize, spans)], other, span)
            for prompt in prompts:
                if self._span_for(len(prompt)) <= span:
                    yield partial(self._place_at, span, prompt)
            for truncate, alternatives in product((False, True), (0, most)):
                yield partial(self._dispatch_at, span, truncate, alternatives)

    def _place_at(self, span: int, prompt: tuple[int, ...]) -> None:
        self._resize(span)
        self._place(self.read(prompt), [0])

    def _dispatch_at(self, span: int, truncate: bool, alternatives: int) -> None:
        self._resize(span)
        self._dispatch(truncate, alternatives)

    def _make_cache(self) -> None:
        self._span, self._roomy = self._spans[0], 0
        cache = init_cache(self.config, self.slots, self._span, self.dtype)
        self._cache = jax.device_put(cache, self.device)

    def _abandon(self) -> None:
        """After an error, when the donated cache may be gone: all slots are empty and fresh."""
        for row in self._rows:
            if row is not None:
                self._toolbox.forget(row)
        self._rows, self._flying = [None] * self.slots, None
        self._shared.forget()
        self._make_cache()
