"""The engine: many requests at once through one model, with tools.

It has a fixed number of slots. A request waits until slots are free, its prompt is prefilled once
for all its samples, and each sample then decodes in a slot of its own beside whatever the other
slots hold, until it ends and frees the slot for the next. Every shape is one of a few buckets, so
that little is compiled; what a request gets does not depend on its company, to the last bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.inference import jitted
from jaxchat.inference.changes import packed_changes
from jaxchat.inference.masks import Packed, packed_masks
from jaxchat.inference.prefixes import DeviceState, Reader
from jaxchat.inference.programs import Programs
from jaxchat.inference.request import MAX_ALTERNATIVES, Completion, EngineError, Request
from jaxchat.inference.sequence import SequenceState, Specials
from jaxchat.inference.service import Job
from jaxchat.model.backend import PLAIN, Compute, bucket
from jaxchat.model.chunks import CHUNK, chunk_ends
from jaxchat.model.joined import join_kernels
from jaxchat.model.kernels.int8 import quantize_kernels
from jaxchat.model.kernels.matmul import round_kernels
from jaxchat.model.kv_cache import Cache, slots_of, whole_blocks
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.parallel.mesh import gathered
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tools.calculator import run_tool
from jaxchat.tools.executor import TOOL_SECONDS, Tool, ToolExecutor

__all__ = ["Completion", "Engine", "EngineError", "Job", "Request"]
# Dispatches for which fewer slots would do, before the cache is made smaller. To make it smaller
# and larger again moves it twice; a dispatch would read what is too much in each of its steps.
PATIENCE = 2
STEPS = 8  # decode steps of a dispatch
ROUNDED_SLOTS = 8  # XLA multiplies a row or a few faster in float32: docs/log.md, 2026-11-24
WAIT = 0.05  # seconds that a step waits where all rows wait for tools


class Engine(Programs):
    """Serves requests with one set of weights, on one device."""

    _underused_steps: int  # dispatches for which fewer would have done

    def __init__(
        self,
        params: Any,
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        slots: int = 64,
        max_len: int | None = None,
        compute: Compute = PLAIN,
        tools: Tool = run_tool,
        tool_timeout: float = TOOL_SECONDS,
        steps_per_dispatch: int = STEPS,
        first_alone: bool = False,
        device: jax.Device | None = None,
        prefix_bytes: int = 0,
        shared: DeviceState | None = None,
    ) -> None:
        """`max_len` (the model's context by default) holds a prompt and its completion.

        With `prefix_bytes` a prompt of a chunk or more is read chunk by chunk, and chunks are kept
        for prompts that begin likewise (`inference.prefixes`); a `shared` state has its own limit.

        With `first_alone` a dispatch has one step where a row has given no token yet, so that its
        first one does not wait for others: where steps are long.

        The calculator answers at once; any other of the `tools` is called in a thread, at most for
        `tool_timeout` seconds. Engines of one device may have a `shared` state; where that has
        weights, `params` are ignored. Ids that the tokenizer does not have are never given. Raises
        EngineError when it has ids that the model does not know.

        Rounded matmuls are for ROUNDED_SLOTS and more; fewer are decoded in `compute.dtype`, unless
        `compute.weights` says otherwise.
        """
        if tokenizer.vocab_size > config.vocab_size:
            raise EngineError(
                f"the tokenizer has {tokenizer.vocab_size} ids but the model only "
                f"{config.vocab_size}; give the tokenizer that the model was trained with."
            )
        self._trained = config  # which may have more ids than the tokenizer
        self.config = replace(config, vocab_size=tokenizer.vocab_size)
        is_asked = slots >= ROUNDED_SLOTS or compute.weights != "auto"
        self.compute = compute if is_asked else compute.unrounded()
        self.slots, self.max_len = slots, max_len or config.sequence_len
        self._most = min(MAX_ALTERNATIVES, self.config.vocab_size)  # alternatives
        self._steps, self._first_alone = steps_per_dispatch, first_alone
        self.device = device or jax.local_devices()[0]
        self._tokenizer, self._specials = tokenizer, Specials.of(tokenizer)
        self._tools = ToolExecutor(tools, timeout=tool_timeout)
        self._pauses = (*self._specials.stops, self._specials.python_end)
        self._shared = shared or DeviceState(prefix_bytes)
        self._cache_lengths = jitted.buckets(jitted.MIN_CACHE, whole_blocks(self.max_len))
        self._rows: list[SequenceState | None] = [None] * slots
        self._waiting: deque[SequenceState] = deque()
        self._in_flight: tuple[jitted.DecodeOutput, list[SequenceState | None]] | None = None
        if self._shared.params is None:
            self.set_params(params)
        self._make_cache()

    @property
    def params(self) -> Any:
        return self._shared.params

    @property
    def free(self) -> int:
        return self._rows.count(None) - len(self._waiting)

    def set_params(self, params: Any) -> None:
        """See `Service`. Engines that share the device's state get them too.

        What lies on the device in the engine's dtype is used without a copy, unless it is joined.
        """

        def place(x: Any) -> Any:
            if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
                shards = {shard.device: shard.data for shard in x.addressable_shards}
                x = shards.get(self.device, next(iter(shards.values())))
            return jax.device_put(x, self.device).astype(self.compute.dtype)

        def prepare(part: Any) -> Any:
            part = jax.tree.map(place, part)
            return join_kernels(part) if self.compute.joined else part

        # One by one: beside what it is joined of, a kernel takes memory twice
        placed = {name: prepare(part) for name, part in gathered(params).items()}
        placed = cut_vocabulary(placed, self._trained, self.config.vocab_size)[0]
        if self.compute.weights == "int8":
            placed = quantize_kernels(placed)
        elif self.compute.matmul == "bfloat16":
            placed = round_kernels(placed)
        self._shared.set_params(placed)

    def submit(self, request: Request) -> Job:
        job = self.make_job(request)
        self._waiting.extend(job.rows)
        return job

    def make_job(self, request: Request) -> Job:
        """A job that is not queued. Raises EngineError if the request does not fit."""
        self.check(request)
        limit = min(request.max_tokens, self.max_len - len(request.tokens))
        return Job(request, limit, self._tokenizer)

    def queue(self, row: SequenceState) -> None:
        """Queues one row of a job."""
        self._waiting.append(row)

    def cancel(self, job: Job) -> None:
        self._drop_calls(job.rows)
        self._rows = [None if row in job.rows else row for row in self._rows]
        self._waiting = deque(row for row in self._waiting if row not in job.rows)

    def step(self) -> bool:
        self.start()
        return self.finish()

    @property
    def busy(self) -> bool:
        """Whether there is a row, in a slot or queued."""
        return any(self._rows) or bool(self._waiting)

    @property
    def in_flight(self) -> bool:
        """Whether there is a dispatch to `finish`."""
        return self._in_flight is not None

    def wait(self) -> None:
        """A moment, or until a tool has answered."""
        self._tools.wait(WAIT)

    def start(self, *, wait: bool = True) -> None:
        """The first half of `step`, which waits for tools at most, and not for the device."""
        try:
            self._admit()
            rows = [row for row in self._rows if row is not None]
            self._collect(rows)
            if any(not row.waits for row in rows):
                self._decode(rows)
            elif rows and wait:
                self.wait()
        except BaseException:
            self._abandon()
            raise

    def finish(self) -> bool:
        """The second half of `step`: reads what the device has decoded."""
        try:
            if self._in_flight is not None:
                (output, rows), self._in_flight = self._in_flight, None
                for slot, (row, picks) in enumerate(
                    zip(rows, jitted.picks_of(output), strict=True)
                ):
                    if row is not None and row is self._rows[slot]:  # else it was cancelled
                        self._append(slot, row, picks)
        except BaseException:
            self._abandon()
            raise
        return self.busy

    def check(self, request: Request) -> None:
        length = len(request.tokens)
        if length > self.max_len - 1:
            raise EngineError(
                f"the prompt has {length} tokens, and the context of {self.max_len} leaves room "
                f"for {self.max_len - 1} and one to answer; shorten the prompt."
            )
        if not all(0 <= token < self.config.vocab_size for token in request.tokens):
            raise EngineError(
                f"the prompt has a token outside the vocabulary of {self.config.vocab_size}; "
                "encode it with the model's tokenizer."
            )
        for token in request.token_ids:
            if not 0 <= token < self.config.vocab_size:
                raise EngineError(
                    f"logit_bias or stop_token_ids name token {token}, and the vocabulary has "
                    f"{self.config.vocab_size}; name tokens of 0 to {self.config.vocab_size - 1}."
                )
        if request.grammar and request.grammar.vocabulary.source.hash != self._tokenizer.hash:
            raise EngineError(
                "the grammar was compiled for another tokenizer; compile it with the model's."
            )

    def prefill(self, tokens: tuple[int, ...]) -> Cache:
        """The cache after `tokens`: a prompt but its last one, which is decoded like its answer."""
        length = bucket(len(tokens), jitted.MIN_PROMPT, self.max_len)
        prompt: Cache = self._call(
            jitted.prefill, self.params, *jitted.padded(tokens, length),
            config=self.config, compute=self.compute,
        )  # fmt: skip
        return prompt

    def _reader(self) -> Reader:
        config, compute = self.config, self.compute
        return Reader(self.params, config, compute, self.max_len, self.device, self._call)

    def _read(self, tokens: tuple[int, ...]) -> tuple[Cache, int]:
        """The cache after `tokens`, and how many of them another prompt had read before."""
        prefixes = self._shared.prefixes
        if not prefixes.limit or len(tokens) < CHUNK:
            return self.prefill(tokens), 0
        ends = chunk_ends(tokens, self._specials.user_end)
        is_compiled_only = self._ahead is not None
        known = [] if is_compiled_only else prefixes.find(tokens, ends)
        cache, chunks = self._reader().read(tokens, ends, known)
        if not is_compiled_only:
            prefixes.keep(tokens, ends, chunks)
        return cache, ends[len(known) - 1] if known else 0

    def _admit(self) -> None:
        """Fills free slots from the queue; samples of one request share its prefilled prompt."""
        free = deque(slot for slot, row in enumerate(self._rows) if row is None)
        while free and self._waiting:
            request, slots, rows = self._waiting[0].request, [], []
            while free and self._waiting and self._waiting[0].request is request:
                slots.append(free.popleft())
                rows.append(self._waiting.popleft())
                self._rows[slots[-1]] = rows[-1]
            read = partial(self._read, request.tokens[:-1])
            prompt, known = self._shared.prompt(request, read)
            for row in rows:
                row.known = known
            self._insert(prompt, slots, len(request.tokens) - 1 + self._steps)

    def _insert(self, prompt: Cache, slots: Sequence[int], reach: int = 0) -> None:
        """Puts a prompt into slots of a cache that has room for it and for `reach` positions.

        Else decoding would lengthen the cache at once, and the next such prompt be put into one of
        another length by a program of its own.
        """
        length = max(reach, *(layer.shape[2] for layer in prompt.k))
        if length > self._cache_length:
            self._resize(self._length_for(length))
        filled = jitted.slots_to_fill(slots, self.slots)
        self._cache = self._call(jitted.insert, self._cache, prompt, filled)

    def _decode(self, rows: list[SequenceState]) -> None:
        """Begins one dispatch of decode steps for all slots."""
        reach = max(row.position for row in rows) + self._steps
        self._fit(self._length_for(reach))
        held = any(row.matcher is not None for row in rows)
        vocab = self.config.vocab_size
        alone = self._first_alone and any(not row.tokens for row in rows)
        steps = 1 if alone else self._steps
        masks = packed_masks(self._rows, steps, vocab) if held else None
        self._dispatch(*self._kind([row.request for row in rows]), masks, steps)

    def _kind(self, requests: Sequence[Request]) -> tuple[bool, int, bool]:
        """`_dispatch`'s settings: whether it truncates, alternatives, whether logits change."""
        truncate = any(request.truncates for request in requests)
        changed = any(request.changes_logits for request in requests)
        # none or all, so that little is compiled; with changes always all
        named = changed or any(request.alternatives for request in requests)
        return truncate, self._most if named else 0, changed

    def _length_for(self, positions: int) -> int:
        return bucket(positions, jitted.MIN_CACHE, self._cache_lengths[-1])

    def _fit(self, length: int) -> None:
        """Lengthens the cache where rows need it; shortens it only when that lasts."""
        self._underused_steps = self._underused_steps + 1 if length < self._cache_length else 0
        if length > self._cache_length or self._underused_steps > PATIENCE:
            self._resize(length)

    def _resize(self, length: int) -> None:
        if length != self._cache_length:
            slots = slots_of(self.config, length)
            self._cache = self._call(jitted.resize_cache, self._cache, slots=slots)
        self._cache_length, self._underused_steps = length, 0

    def _dispatch(
        self,
        truncate: bool,
        alternatives: int,
        changed: bool = False,
        masks: Packed | None = None,
        steps: int = 0,
    ) -> None:
        vocab, ends = self.config.vocab_size, self._specials.stops
        changes = packed_changes(self._rows, self._cache_length, vocab, ends) if changed else None
        # else the program has a known number, and on a GPU nothing to read back in each step
        given = np.int32(steps or self._steps) if self._first_alone and masks is None else None
        self._cache, output = self._call(
            jitted.decode_steps,
            self.params,
            self._cache,
            jitted.packed_slots(self._rows, self._steps),
            changes,
            masks,
            given,
            config=self.config,
            compute=self.compute,
            pauses=self._pauses,
            truncate=truncate,
            alternatives=alternatives,
        )
        self._in_flight = output, list(self._rows)

    def _append(self, slot: int, row: SequenceState, picks: list[Any]) -> None:
        """Gives a row its tokens; past a stop text, which the device does not see, none."""
        for token, logprob, others in picks:
            code = row.append(token, logprob, others, self._specials)
            if code is not None:
                row.call = self._tools.start(self._tokenizer.decode(code))
                row.answer(self._tokenizer, self._specials)
            if row.finish_reason:
                self._rows[slot] = None
                return

    def _collect(self, rows: Iterable[SequenceState]) -> None:
        """Gives rows the outputs of tools that have come."""
        waiting = [row for row in rows if row.waits]
        if waiting:
            self._tools.poll()
        for row in waiting:
            row.answer(self._tokenizer, self._specials)

    def _drop_calls(self, rows: Iterable[SequenceState | None]) -> None:
        """The rows are gone; their tool calls are not waited for."""
        for row in rows:
            if row is not None and row.call is not None:
                self._tools.drop(row.call)
                row.call = None

    def _make_cache(self) -> None:
        self._cache_length, self._underused_steps = self._cache_lengths[0], 0
        self._cache = jax.device_put(self._new_cache(self._cache_length), self.device)

    def _new_cache(self, length: int) -> Cache:
        dtype = jnp.dtype(self.compute.dtype)
        cache: Cache = jitted.new_cache(self.config, self.slots, length, dtype)
        return cache

    def _abandon(self) -> None:
        """After an error, when the donated cache may be gone: all slots are empty and fresh."""
        self._drop_calls(self._rows)
        self._rows, self._in_flight = [None] * self.slots, None
        self._shared.forget()
        self._make_cache()
