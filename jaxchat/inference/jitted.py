"""The engine's compiled functions, and the arrays that host and device exchange for them.

The functions are module-level, so that engines of one configuration share them.

What a row gets is the same to the last bit in any slot and any company: a prompt is read alone, the
rows of a step are always as many as there are slots, and attention adds its blocks in order
(`model.kernels.cached`). Barriers keep the variants of a program from being fused in
different ways.

Axes: B slots of the engine, N decode steps of a dispatch, V vocabulary, A alternatives reported for
each token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.changes import Counts, change, count, count_next, unpacked_changes
from jaxchat.inference.grammar import FREE
from jaxchat.inference.masks import masked, pauses_after, unpacked_masks
from jaxchat.inference.request import Alternatives
from jaxchat.inference.sampling import Sampling, likeliest, sample, uniforms
from jaxchat.inference.sequence import SequenceState
from jaxchat.model import chunks, gpt
from jaxchat.model.backend import Compute, bucket
from jaxchat.model.kv_cache import Cache, View, init_cache, place, resize, view_of

MIN_PROMPT = 64  # tokens a prompt is padded to; longer ones to the next power of two
MIN_CACHE = 64  # positions of the cache that decoding looks at; then powers of two
# What the device gets from the host for a slot before a dispatch, as 32-bit columns of one array:
# every array handed over costs as much as a product. Behind them stand N forced tokens.
SLOT = (
    ("token", "i4"),  # the last one, not yet in the cache
    ("active", "i4"),  # 0 or 1
    ("remaining", "i4"),  # tokens it may still have
    ("forced_count", "i4"),  # tokens to take before any is sampled
    *zip(Sampling._fields, ("f4", "i4", "f4", "u4", "i4"), strict=True),
)


def buckets(least: int, most: int) -> list[int]:
    """Every value of `bucket`."""
    found = [bucket(1, least, most)]
    while found[-1] < most:
        found.append(bucket(found[-1] + 1, least, most))
    return found


def slots_to_fill(slots: Sequence[int], total: int) -> npt.NDArray[np.int32]:
    """Slots as [total], padded with a number past the last slot."""
    filled = np.full(total, total, np.int32)
    filled[: len(slots)] = slots
    return filled


def padded(tokens: Sequence[int], length: int) -> tuple[npt.NDArray[np.int32], ...]:
    """Tokens as [1, length], padded on the right, and their number as [1]."""
    row = np.zeros((1, length), np.int32)
    row[0, : len(tokens)] = tokens
    return row, np.array([len(tokens)], np.int32)


def packed_slots(slots: Sequence[SequenceState | None], steps: int) -> npt.NDArray[np.int32]:
    """The slots as the device gets them, [B,9+steps]; a row that waits for a tool is not active."""
    packed = np.zeros(len(slots), [*SLOT, ("forced", "i4", (steps,))])
    packed["top_p"] = 1.0  # an empty slot is greedy
    for slot, row in enumerate(slots):
        if row is not None:
            forced, r = list(row.forced_tokens)[:steps], row.request
            packed[slot] = (
                row.last, not row.waits, row.limit - len(row.tokens), len(forced),
                r.temperature, r.top_k, r.top_p, r.seed % 2**32, row.stream,
                forced + [0] * (steps - len(forced)),
            )  # fmt: skip
    return packed.view(np.int32).reshape(len(slots), -1)


def unpacked_slots(packed: Array) -> tuple[Array, Array, Array, Array, Array, Sampling]:
    """Packed slots [B,9+N] -> token, active, remaining, forced_count, forced [B,N], sampling."""
    token, active, remaining, forced_count, *settings = packed[:, : len(SLOT)].T
    kinds = [jnp.dtype(kind) for _, kind in SLOT[-len(settings) :]]
    casts = [lax.bitcast_convert_type(x, kind) for x, kind in zip(settings, kinds, strict=True)]
    return token, active != 0, remaining, forced_count, packed[:, len(SLOT) :], Sampling(*casts)


class DecodeOutput(NamedTuple):
    """The tokens of a dispatch; those of row b are the leading ones, where `active` is True."""

    token: Array  # [N,B] int32
    logprob: Array  # [N,B] float32
    active: Array  # [N,B] bool
    others: Array  # [N,B,A] int32, likeliest first
    other_logprobs: Array  # [N,B,A] float32


def picks_of(output: DecodeOutput) -> list[list[tuple[int, float, Alternatives]]]:
    """For every slot its tokens of a dispatch: id, log-probability and alternatives."""
    arrays = [np.asarray(array) for array in output]
    counts = arrays[2].sum(axis=0).tolist()
    tokens, logprobs, _, others, values = (array.swapaxes(0, 1).tolist() for array in arrays)
    return [
        [
            (tokens[b][n], logprobs[b][n], tuple(zip(others[b][n], values[b][n], strict=True)))
            for n in range(count)
        ]
        for b, count in enumerate(counts)
    ]


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def prefill(
    params: Any, tokens: ArrayLike, length: ArrayLike, *, config: ModelConfig, compute: Compute
) -> Cache:
    """The cache after a prompt [1,T] of `length` [1], padded on the right."""
    tokens, length = jnp.asarray(tokens), jnp.asarray(length)
    cache = init_cache(config, 1, tokens.shape[1], compute.dtype)
    return gpt.prefill(params, tokens, length, cache, config, compute)[1]


@functools.partial(jax.jit, static_argnames=("config", "compute"), donate_argnames="before")
def read_chunk(
    params: Any,
    tokens: ArrayLike,
    count: ArrayLike,
    start: ArrayLike,
    before: chunks.Prefix,
    *,
    config: ModelConfig,
    compute: Compute,
) -> tuple[chunks.Prefix, chunks.Prefix]:
    """The row with a chunk [1,C] of a prompt at position `start`, of which the first count [1] are
    real; and the chunk alone.
    """
    tokens, count, start = map(jnp.asarray, (tokens, count, start))
    return chunks.read_chunk(params, tokens, count, start, before, config, compute)


@functools.partial(jax.jit, donate_argnames="prefix")
def append_chunk(prefix: chunks.Prefix, chunk: chunks.Prefix, start: ArrayLike) -> chunks.Prefix:
    """The prefix with a chunk at position `start`."""
    return chunks.append_chunk(prefix, chunk, jnp.asarray(start))


@functools.partial(jax.jit, static_argnames="size")
def resize_prefix(prefix: chunks.Prefix, *, size: int) -> chunks.Prefix:
    """The prefix with room for `size` positions."""
    return chunks.resize_prefix(prefix, size)


@functools.partial(jax.jit, static_argnames=("room", "config"))
def cache_of(prefix: chunks.Prefix, length: ArrayLike, *, room: int, config: ModelConfig) -> Cache:
    """The cache for `room` positions after a prompt of `length` [1]."""
    return chunks.cache_of(prefix, jnp.asarray(length), room, config)


@functools.partial(jax.jit, static_argnames=("size", "config", "compute"))
def empty_prefix(*, size: int, config: ModelConfig, compute: Compute) -> chunks.Prefix:
    """Room for `size` positions."""
    return chunks.empty_prefix(config, size, compute.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def new_cache(config: ModelConfig, batch: int, length: int, dtype: DTypeLike) -> Cache:
    """An empty cache: one program, where each of its arrays would be several."""
    return init_cache(config, batch, length, dtype)


@functools.partial(jax.jit, donate_argnames="cache")
def insert(cache: Cache, prompt: Cache, slots: ArrayLike) -> Cache:
    """The engine's cache with a prompt in slots [B]; numbers past the last slot are dropped."""
    return place(cache, prompt, jnp.asarray(slots))


@functools.partial(jax.jit, static_argnames="slots")
def resize_cache(cache: Cache, *, slots: tuple[int, ...]) -> Cache:
    """The engine's cache with other numbers of slots."""
    return resize(cache, slots)


@functools.partial(
    jax.jit,
    static_argnames=("config", "compute", "pauses", "truncate", "alternatives"),
    donate_argnames="cache",
)
def decode_steps(
    params: Any,
    cache: Cache,
    slots: ArrayLike,
    changes: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    *,
    config: ModelConfig,
    compute: Compute,
    pauses: tuple[int, ...],
    truncate: bool,
    alternatives: int,
) -> tuple[Cache, DecodeOutput]:
    """N tokens for every active row of packed slots [B,9+N], or fewer for one that ends.

    A row pauses after it has sampled one of `pauses` or has none remaining. No row may grow to more
    positions than the cache has slots. `changes` are packed ones (see `changes.packed_changes`).
    With packed `masks` (see `masks.packed_masks`) there are only as many steps as these say; else
    as many as `steps` [], where these are given.
    """
    token, active, remaining, forced_count, forced, settings = unpacked_slots(jnp.asarray(slots))
    asked = None if changes is None else unpacked_changes(jnp.asarray(changes))
    counts = None if asked is None else count(asked, config.vocab_size)
    limits = None if masks is None else unpacked_masks(jnp.asarray(masks), config.vocab_size)
    if limits is not None:
        held = jnp.where(limits.kind == FREE, remaining, forced_count + limits.most)
        remaining = jnp.minimum(remaining, held)

    def step(
        carry: tuple[Cache, Array, Array, Array, Counts | None], now: tuple[Array, Array, View]
    ) -> tuple[Any, DecodeOutput]:
        (cache, token, active, remaining, counts), (number, uniform, view) = carry, now
        logits, cache = gpt.decode(params, token, cache, config, compute, active=active, view=view)
        logits = lax.optimization_barrier(logits)
        shaped = least = None
        if asked is not None and counts is not None:
            shaped, least = change(logits, asked, counts, number), asked.least
        if limits is not None:
            shaped = masked(logits, limits, shaped)
        sampled, logprob = sample(
            logits, settings, uniform, truncate=truncate, shaped=shaped, least=least
        )
        choose = number >= forced_count
        token = jnp.where(active, jnp.where(choose, sampled, forced[:, number]), token)
        others = likeliest(logits, alternatives)
        output = DecodeOutput(token, logprob, active, *others)
        remaining = remaining - active.astype(remaining.dtype)
        paused = choose & jnp.isin(token, jnp.array(pauses, token.dtype))
        if limits is not None:
            paused |= choose & pauses_after(limits, token)
        counts = None if counts is None else count_next(counts, token, choose & active)
        return (cache, token, active & ~paused & (remaining > 0), remaining, counts), output

    # A scan of known length: of a loop that stops early, the host would wait for every step.
    start = (cache, token, active, remaining, counts)
    numbers = jnp.arange(forced.shape[1], dtype=jnp.int32)
    # All at once: a step of a small model would take a fifth of its time for its own.
    # In a step XLA would take every cosine again for each layer and head, and find out for each
    # what is visible. The positions are those of active rows: what is written for others is never
    # seen.
    positions = cache.length[:, None] + numbers[None, :]
    sizes = [k.shape[2] for k in cache.k]
    views = jax.vmap(lambda position: view_of(position, sizes, config, compute.dtype))(positions.T)
    now = (numbers, uniforms(settings, positions + 1).T, views)
    steps = steps if limits is None else limits.steps
    if steps is None:
        end, output = lax.scan(step, start, now)
    else:
        end, output = _scan_first(step, start, now, jnp.asarray(steps))
    return end[0], output


def _scan_first(
    step: Callable[[Any, Any], tuple[Any, Any]], start: Any, rows: Any, count: Array
) -> tuple[Any, Any]:
    """`lax.scan` over the first `count` of `rows`; the other outputs are zeros.

    One program for any number, with the same loop body as for all.
    """
    first = jax.tree.map(lambda x: x[0], rows)
    shapes = jax.eval_shape(step, start, first)[1]
    length = jax.tree.leaves(rows)[0].shape[0]
    outputs = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def body(number: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outputs = state
        carry, new = step(carry, jax.tree.map(lambda x: x[number], rows))
        put = functools.partial(lax.dynamic_update_index_in_dim, index=number, axis=0)
        return carry, jax.tree.map(put, outputs, new)

    end: tuple[Any, Any] = lax.fori_loop(jnp.zeros_like(count), count, body, (start, outputs))
    return end
