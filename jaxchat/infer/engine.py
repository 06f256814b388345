"""The engine: many requests at once through one model, with tools (layer 3).

It has a fixed number of slots. A request waits until slots are free, its prompt is read once for
all its samples, and each sample then decodes in a slot of its own beside whatever the other slots
hold, until it ends and gives the slot to the next. Every shape is one of a few buckets, so that
little is compiled; what a request gets does not depend on its company.

One thread at a time may use an engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxchat.config import ModelConfig
from jaxchat.infer.device import (
    Chosen,
    Emitted,
    Rows,
    decode_steps,
    first_tokens,
    place_rows,
    read_prompts,
)
from jaxchat.infer.request import (
    MAX_ALTERNATIVES,
    Alternatives,
    Completion,
    EngineError,
    Request,
)
from jaxchat.infer.row import Row, Specials, Tool, Toolbox
from jaxchat.infer.stops import StopWatch
from jaxchat.model.attention import choose_attention
from jaxchat.model.cache import Cache, init_cache
from jaxchat.sampling import Sampling
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tools.calculator import run_tool
from jaxchat.train.compute import Compute

__all__ = ["Completion", "Engine", "EngineError", "Job", "Request"]

PROMPT_ROWS = (1, 8, 64)  # prompts read at once
MIN_PROMPT = 64  # tokens a prompt is padded to; longer ones to the next power of two
ROOM = 4  # 1 / ROOM of the context is enough for an answer to a prompt that is cut
MIN_SPAN = 128  # slots of the cache that decoding looks at; then powers of two


class Job:
    """A submitted request; its rows fill up with every step of the engine.

    `request` is as it is served: with what `cut` has left of the prompt.
    """

    def __init__(self, request: Request, limit: int, tokenizer: Tokenizer) -> None:
        self.request = request
        self.rows = [Row(request, stream, limit) for stream in range(request.n)]
        if request.stop:
            for row in self.rows:
                row.stops = StopWatch(request.stop, tokenizer)

    @property
    def done(self) -> bool:
        """Whether every sample has ended."""
        return all(row.finish_reason for row in self.rows)


class Engine:
    """Serves requests with one set of weights, on one device."""

    def __init__(
        self,
        params: Any,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        slots: int = 64,
        max_len: int | None = None,
        dtype: DTypeLike = jnp.float32,
        tools: Tool = run_tool,
        steps_per_dispatch: int = 8,
        device: jax.Device | None = None,
    ) -> None:
        """`max_len` (the model's context by default) holds a prompt and its completion.

        Raises EngineError when the tokenizer has ids that the model does not know.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the model only "
                f"{config.vocab_size}; give the tokenizer that the model was trained with."
            )
        self.config, self.dtype, self.slots = config, jnp.dtype(dtype), slots
        self.max_len = max_len or config.sequence_len
        self._steps = steps_per_dispatch
        self._device = device or jax.devices()[0]
        self._toolbox = Toolbox(tools, tokenizer, Specials.of(tokenizer))
        self._pauses = (*self._toolbox.specials.stops, self._toolbox.specials.python_end)
        self._attention = choose_attention(config.head_dim, self.dtype)
        self._rows: list[Row | None] = [None] * slots
        self._waiting: deque[Row] = deque()
        self.set_params(params)
        cache = init_cache(config, slots, self.max_len, self.dtype)
        self._cache = jax.device_put(cache, self._device)

    @property
    def params(self) -> Any:
        """The weights, in the engine's dtype."""
        return self._params

    @property
    def compute(self) -> Compute:
        """How whole rows are computed."""
        return Compute(dtype=self.dtype, attention=self._attention)

    def set_params(self, params: Any) -> None:
        """Takes other weights of the same shapes; nothing is compiled again.

        They may share memory with `params`: whoever donates those must give a copy. Requests that
        are under way go on with the new weights.
        """
        params = jax.tree.map(lambda x: x.astype(self.dtype), params)
        self._params = jax.device_put(params, self._device)

    def generate(
        self, requests: Sequence[Request], progress: Callable[[int], object] | None = None
    ) -> list[list[Completion]]:
        """The completions of every request, `n` each, in the order of the requests.

        `progress` is told how many requests are done. Raises EngineError, before anything runs, for
        a request that does not fit.
        """
        for request in requests:
            self._check(request)
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

    def submit(self, request: Request) -> Job:
        """Queues a request; `step` then works on it. Raises EngineError if it does not fit."""
        self._check(request)
        request = self._cut(request)
        limit = min(request.max_tokens, self.max_len - len(request.tokens))
        job = Job(request, limit, self._toolbox.tokenizer)
        self._waiting.extend(job.rows)
        return job

    def cancel(self, job: Job) -> None:
        """Drops what is unfinished of a job, at once."""
        self._rows = [None if row in job.rows else row for row in self._rows]
        self._waiting = deque(row for row in self._waiting if row not in job.rows)

    def step(self) -> bool:
        """Gives free slots to who waits, then decodes one dispatch. False: nothing is left."""
        self._admit()
        if any(self._rows):
            self._decode()
        return any(self._rows) or bool(self._waiting)

    def _check(self, request: Request) -> None:
        length = len(request.tokens)
        if length > self.max_len - 1 and not request.cut:
            raise EngineError(
                f"the prompt has {length} tokens, and the context of {self.max_len} leaves room "
                f"for {self.max_len - 1} and one to answer; shorten the prompt, or "
                "let it be cut."
            )
        if not all(0 <= token < self.config.vocab_size for token in request.tokens):
            raise EngineError(
                f"the prompt has a token outside the vocabulary of {self.config.vocab_size}; "
                "encode it with the model's tokenizer."
            )

    def _cut(self, request: Request) -> Request:
        """A request whose prompt leaves room for an answer, where it asks for that."""
        room = min(request.max_tokens, max(1, self.max_len // ROOM))
        extra = len(request.tokens) + room - self.max_len
        if not request.cut or extra <= 0:
            return request
        first = int(request.tokens[0] == self._toolbox.specials.bos and len(request.tokens) > extra)
        kept = request.tokens[:first] + request.tokens[first + extra :]
        return replace(request, tokens=kept)

    def _admit(self) -> None:
        """Fills free slots from the queue, prompts of about one length together."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        groups: dict[int, list[tuple[int, Row]]] = {}
        for slot in free[: len(self._waiting)]:
            row = self._waiting.popleft()
            length = _bucket(len(row.request.tokens), MIN_PROMPT, self.max_len)
            groups.setdefault(length, []).append((slot, row))
        for length, placed in groups.items():
            self._start(length, placed)

    def _start(self, length: int, placed: list[tuple[int, Row]]) -> None:
        """Reads the prompts of rows and samples their first tokens."""
        requests = list({id(row.request): row.request for _, row in placed}.values())
        while requests:
            count = _row_bucket(len(requests))
            part, requests = requests[:count], requests[count:]
            order = {id(request): number for number, request in enumerate(part)}
            logits, prompts = read_prompts(
                self._params,
                *_padded([request.tokens for request in part], count, length),
                config=self.config,
                dtype=self.dtype,
                attention=self._attention,
            )
            mine = [(slot, row) for slot, row in placed if id(row.request) in order]
            for begin in range(0, len(mine), count):
                some = mine[begin : begin + count]
                source = [order[id(row.request)] for _, row in some]
                source += [0] * (count - len(some))
                self._place(logits, prompts, _ints(source), some)

    def _place(
        self, logits: jax.Array, prompts: Cache, source: jax.Array, placed: list[tuple[int, Row]]
    ) -> None:
        """Puts prompt source[i] into the slot of the i-th row, with its first token."""
        padding = source.size - len(placed)
        slots = _ints([slot for slot, _ in placed] + [self.slots] * padding)
        self._cache = place_rows(self._cache, prompts, source, slots)
        rows = [row for _, row in placed]
        sampling = _sampling([*rows, *[None] * padding])
        chosen = first_tokens(
            logits, prompts.length, source, sampling,
            truncate=_truncates(rows), alternatives=_alternatives(rows, self.config),
        )  # fmt: skip
        for (slot, row), pick in zip(placed, _picks(chosen), strict=False):
            self._rows[slot] = row
            self._take(slot, pick)

    def _decode(self) -> None:
        """One dispatch of decode steps for all slots."""
        active = [row for row in self._rows if row is not None]
        reach = max(row.position for row in active) + self._steps
        self._cache, emitted = decode_steps(
            self._params,
            self._cache,
            self._host_rows(),
            config=self.config,
            dtype=self.dtype,
            span=_bucket(reach, MIN_SPAN, self.max_len),
            pauses=self._pauses,
            truncate=_truncates(active),
            alternatives=_alternatives(active, self.config),
        )
        counts = np.asarray(emitted.active).sum(axis=0).tolist()
        picks = _picks(emitted)
        for slot, count in enumerate(counts):
            for number in range(count):
                if self._rows[slot] is not None:  # the device sees no stop text
                    self._take(slot, picks[number][slot])

    def _take(self, slot: int, pick: tuple[int, float, Alternatives]) -> None:
        row = self._rows[slot]
        assert row is not None
        token, logprob, others = pick
        row.take(token, logprob, self._toolbox, others)
        if row.finish_reason:
            self._rows[slot] = None

    def _host_rows(self) -> Rows:
        """The slots as the device needs to know them."""
        forced = np.zeros((self.slots, self._steps), np.int32)
        token, remaining, count = np.zeros((3, self.slots), np.int32)
        for slot, row in enumerate(self._rows):
            if row is None:
                continue
            queue = list(row.forced)[: self._steps]
            forced[slot, : len(queue)] = queue
            count[slot] = len(queue)
            token[slot] = row.tokens[-1]
            remaining[slot] = row.limit - len(row.tokens)
        return Rows(
            token=jnp.asarray(token),
            active=jnp.asarray([row is not None for row in self._rows]),
            remaining=jnp.asarray(remaining),
            forced=jnp.asarray(forced),
            forced_count=jnp.asarray(count),
            sampling=_sampling(self._rows),
        )


def _bucket(size: int, least: int, most: int) -> int:
    """The smallest power of two, from `least`, that holds `size`; at most `most`."""
    return min(max(least, 1 << (size - 1).bit_length()), most)


def _row_bucket(count: int) -> int:
    """The fewest rows that hold `count`, or fewer where over half of them would stay empty."""
    fits = next((rows for rows in PROMPT_ROWS if rows >= count), PROMPT_ROWS[-1])
    return fits if fits <= 2 * count else max(rows for rows in PROMPT_ROWS if rows <= count)


def _ints(values: Sequence[int]) -> jax.Array:
    return jnp.asarray(np.array(values, np.int32))


def _padded(
    prompts: Sequence[Sequence[int]], count: int, length: int
) -> tuple[jax.Array, jax.Array]:
    """Prompts as [count, length] padded on the right, and their lengths [count]."""
    tokens = np.zeros((count, length), np.int32)
    for number, prompt in enumerate(prompts):
        tokens[number, : len(prompt)] = prompt
    lengths = [len(prompt) for prompt in prompts] + [1] * (count - len(prompts))
    return jnp.asarray(tokens), _ints(lengths)


def _sampling(rows: Sequence[Row | None]) -> Sampling:
    """The settings of rows; an empty slot is greedy."""
    requests = [row.request if row is not None else None for row in rows]
    temperature = np.array([r.temperature if r else 0.0 for r in requests], np.float32)
    top_p = np.array([r.top_p if r else 1.0 for r in requests], np.float32)
    seed = np.array([r.seed % 2**32 if r else 0 for r in requests], np.uint32)
    return Sampling(
        temperature=jnp.asarray(temperature),
        top_k=_ints([r.top_k if r else 0 for r in requests]),
        top_p=jnp.asarray(top_p),
        seed=jnp.asarray(seed),
        stream=_ints([row.stream if row else 0 for row in rows]),
    )


def _alternatives(rows: Iterable[Row], config: ModelConfig) -> int:
    """How many alternatives the device computes: of one number, so that little is compiled."""
    wanted = any(row.request.alternatives for row in rows)
    return min(MAX_ALTERNATIVES, config.vocab_size) if wanted else 0


def _picks(chosen: Chosen | Emitted) -> Any:
    """Nested lists, of the shape of the tokens, of what `Row.take` wants of each."""

    def zipped(tokens: Any, logprobs: Any, others: Any, values: Any) -> Any:
        if isinstance(tokens, list):
            return [zipped(*each) for each in zip(tokens, logprobs, others, values, strict=True)]
        return tokens, logprobs, tuple(zip(others, values, strict=True))

    arrays = (chosen.token, chosen.logprob, chosen.others, chosen.other_logprobs)
    return zipped(*(np.asarray(array).tolist() for array in arrays))


def _truncates(rows: Iterable[Row]) -> bool:
    return any(row.request.top_k > 0 or row.request.top_p < 1.0 for row in rows)
