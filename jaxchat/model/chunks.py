"""Reading a prompt in chunks, so that what several prompts begin with is read once.

What a chunk holds depends on the tokens up to its end alone, and so do its place and the program
that computes it: a chunk that was kept is bit-identical to the one that would be computed again.

Axes: L layers, S positions, C positions of a chunk, G key/value heads, K head size, D width,
V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxchat.config.derive import layer_specs
from jaxchat.config.schema import ModelConfig
from jaxchat.model.backend import PLAIN, Compute, bucket
from jaxchat.model.gpt import Params, apply
from jaxchat.model.kv_cache import Cache, fill, slots_of, whole_blocks
from jaxchat.model.rope import rope_table

# Tokens that are read at once. With fewer, longer beginnings are found, but all takes longer:
# products of few rows are less efficient, and a GPU takes some 2 ms however few they are.
CHUNK = 256
LEAST = 64  # tokens of a chunk that a mark ends; chunks are padded to it and its doubles


class Prefix(NamedTuple):
    """The keys and values of a row's first positions, or of one chunk, in order."""

    kv: Float[Array, "2 L G S K"]
    previous: Float[Array, "1 D"]  # the last token's embedding, for smear


def empty_prefix(config: ModelConfig, size: int, dtype: DTypeLike = jnp.float32) -> Prefix:
    """Room for `size` positions."""
    shape = (2, config.n_layer, config.n_kv_head, size, config.head_dim)
    return Prefix(jnp.zeros(shape, dtype), jnp.zeros((1, config.n_embd), dtype))


def chunk_ends(tokens: Sequence[int], mark: int) -> list[int]:
    """Where the whole chunks of a prompt end.

    A chunk has CHUNK tokens, or fewer where it ends with a `mark`: the end of a user's message, up
    to which a conversation's next turn is the same. The first chunk has no mark's end.
    """
    marks = (np.flatnonzero(np.asarray(tokens) == mark) + 1).tolist()
    ends = [CHUNK] if len(tokens) >= CHUNK else []
    while ends and ends[-1] < len(tokens):
        marked = marks[bisect_left(marks, ends[-1] + LEAST) :][:1]
        ends.append(min([ends[-1] + CHUNK, *marked]))
    return ends[:-1] if ends and ends[-1] > len(tokens) else ends


def chunk_size(length: int) -> int:
    """The tokens that a chunk of `length` is padded to."""
    return bucket(length, LEAST, CHUNK)


def prefix_size(positions: int, context: int) -> int:
    """The positions of a row that has room for as many: a power of two, or all of a context.

    The last chunk is padded beyond the context, by less than half a CHUNK.
    """
    most = -(-context // CHUNK) * CHUNK + CHUNK // 2
    size = bucket(positions, CHUNK)
    return most if 2 * size > most else size


def resize_prefix(prefix: Prefix, size: int) -> Prefix:
    """The prefix with room for `size` positions, at least as many as it has."""
    extra = size - prefix.kv.shape[3]
    return prefix._replace(kv=jnp.pad(prefix.kv, ((0, 0),) * 3 + ((0, extra), (0, 0))))


def read_chunk(
    params: Params,
    tokens: Int[Array, "1 C"],
    count: Int[Array, " 1"],
    start: Int[Array, ""],
    before: Prefix,
    config: ModelConfig,
    compute: Compute = PLAIN,
) -> tuple[Prefix, Prefix]:
    """The row with `tokens`, of which the first count[0] >= 1 are real, at position `start`; and
    the chunk alone.

    `before` holds the `start` positions before them, and has room for the chunk.
    """
    specs, row = layer_specs(config), before.kv
    size, length = row.shape[3], tokens.shape[1]
    position = start + jnp.arange(length, dtype=start.dtype)
    zero = jnp.zeros_like(start)

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        nonlocal row
        new = jnp.stack([k[0], v[0]]).swapaxes(1, 2).astype(row.dtype)[:, None]
        row = lax.dynamic_update_slice(row, new, (zero, layer, zero, start, zero))
        window = specs[layer].window
        span = min(size, whole_blocks(window + length))  # keys that some query sees
        first = jnp.maximum(start + length - span, 0)
        seen = (2, 1, row.shape[2], span, row.shape[4])
        keys, values = lax.dynamic_slice(row, (zero, layer, zero, first, zero), seen)[:, 0]
        keys, values = keys.astype(compute.dtype), values.astype(compute.dtype)
        back = position[:, None] - (first + jnp.arange(span, dtype=start.dtype))[None, :]
        return _attention(q[0], keys, values, (back >= 0) & (back <= window))[None], new

    rope = rope_table(position[None, :], config, compute.dtype)
    previous = before.previous.astype(compute.dtype)
    _, embedded, saved = apply(params, tokens, rope, previous, attend, config, compute)
    last = embedded[:, count[0] - 1].astype(row.dtype)
    return Prefix(row, last), Prefix(jnp.concatenate(saved, axis=1), last)


def append_chunk(prefix: Prefix, chunk: Prefix, start: Int[Array, ""]) -> Prefix:
    """The prefix with a chunk at position `start`."""
    kv = lax.dynamic_update_slice_in_dim(prefix.kv, chunk.kv, start, axis=3)
    return Prefix(kv, chunk.previous)


def cache_of(prefix: Prefix, length: Int[Array, " 1"], room: int, config: ModelConfig) -> Cache:
    """A cache of one row for `room` positions, after the first `length`."""

    def filled(values: Array, count: int) -> Array:
        return fill(values[:, :room].swapaxes(0, 1)[None], length, count)

    slots = slots_of(config, room)
    keys, values = (tuple(map(filled, side, slots)) for side in prefix.kv)
    return Cache(keys, values, length, prefix.previous)


def _attention(
    q: Float[Array, "C H K"],
    k: Float[Array, "G S K"],
    v: Float[Array, "G S K"],
    visible: Bool[Array, "C S"],
) -> Float[Array, "C H K"]:
    """Scores are bounded (see `model.attention`): no maximum is subtracted."""
    rows, heads, size = q.shape
    groups = k.shape[0]
    q = (q * jnp.asarray(size**-0.5, q.dtype)).reshape(rows, groups, heads // groups, size)
    q = q.transpose(1, 2, 0, 3).reshape(groups, -1, size)
    scores = jnp.einsum("grk,gsk->grs", q, k, preferred_element_type=jnp.float32)
    hidden = jnp.tile(jnp.where(visible, 0.0, -jnp.inf), (heads // groups, 1))
    weights = lax.optimization_barrier(jnp.exp(scores + hidden[None]))
    y = jnp.einsum("grs,gsk->grk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    y = (y / jnp.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)
    return y.reshape(heads, rows, size).swapaxes(0, 1)
