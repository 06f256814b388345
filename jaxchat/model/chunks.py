"""Reading a prompt in chunks, so that what several prompts begin with is read once.

What a chunk holds depends on the tokens up to its end alone, and so does the program that computes
it: a chunk that was kept is bit-identical to the one that would be computed again.

Axes: L layers, S positions, C positions of a chunk, G key/value heads, K head size, D width,
V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxchat.config.derive import layer_specs
from jaxchat.config.schema import ModelConfig
from jaxchat.model.backend import PLAIN, Compute, bucket
from jaxchat.model.gpt import Params, apply
from jaxchat.model.kv_cache import Cache, fill, whole_blocks
from jaxchat.model.rope import rope_table

# Tokens that are read at once. With fewer, longer beginnings are found, but all takes longer:
# products of few rows are less efficient, and a GPU takes some 2 ms however few they are.
CHUNK = 256


class Prefix(NamedTuple):
    """The keys and values of a row's first positions, or of one chunk, in order."""

    kv: Float[Array, "2 L G S K"]
    previous: Float[Array, "1 D"]  # the last token's embedding, for smear


def empty_prefix(config: ModelConfig, size: int, dtype: DTypeLike = jnp.float32) -> Prefix:
    """Room for `size` positions."""
    shape = (2, config.n_layer, config.n_kv_head, size, config.head_dim)
    return Prefix(jnp.zeros(shape, dtype), jnp.zeros((1, config.n_embd), dtype))


def prefix_size(chunks: int, context: int) -> int:
    """The positions for so that `chunks` chunks fit; powers of two, up to the context's chunks."""
    return bucket(chunks * CHUNK, CHUNK, -(-context // CHUNK) * CHUNK)


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
) -> Prefix:
    """The chunk of `tokens`, of which the first count[0] >= 1 are real, at position `start`.

    `before` holds the `start` positions before them, and has room for the chunk.
    """
    specs, store = layer_specs(config), before.kv.dtype
    size, length = before.kv.shape[3], tokens.shape[1]
    position = start + jnp.arange(length, dtype=start.dtype)

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        new = jnp.stack([k[0], v[0]]).swapaxes(1, 2).astype(store)
        held = lax.dynamic_update_slice_in_dim(before.kv[:, layer], new, start, axis=2)
        window = specs[layer].window
        span = min(size, whole_blocks(window + length))  # keys that some query sees
        first = jnp.maximum(start + length - span, 0)
        keys, values = lax.dynamic_slice_in_dim(held, first, span, axis=2).astype(compute.dtype)
        back = position[:, None] - (first + jnp.arange(span, dtype=start.dtype))[None, :]
        return _attention(q[0], keys, values, (back >= 0) & (back <= window))[None], new

    rope = rope_table(position[None, :], config, compute.dtype)
    previous = before.previous.astype(compute.dtype)
    _, embedded, saved = apply(params, tokens, rope, previous, attend, config, compute)
    return Prefix(jnp.stack(saved, axis=1), embedded[:, count[0] - 1].astype(store))


def append_chunk(prefix: Prefix, chunk: Prefix, start: Int[Array, ""]) -> Prefix:
    """The prefix with a chunk at position `start`."""
    kv = lax.dynamic_update_slice_in_dim(prefix.kv, chunk.kv, start, axis=3)
    return Prefix(kv, chunk.previous)


def cache_of(prefix: Prefix, length: Int[Array, " 1"], slots: tuple[int, ...]) -> Cache:
    """A cache of one row with `slots` in each layer, after the first `length` positions."""

    def filled(values: Array, count: int) -> Array:
        return fill(values.swapaxes(0, 1)[None], length, count)

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
