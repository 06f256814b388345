"""One sampler for all rows of a batch, each with its own settings.

Axes: B batch, V vocabulary. What a row draws depends on its logits, its seed and its position
alone, never on the rows beside it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Sampling(NamedTuple):
    """How each row is sampled."""

    temperature: Array  # [B] float32; 0 takes the likeliest token
    top_k: Array  # [B] int32; only the k likeliest tokens, 0: all
    top_p: Array  # [B] float32; only the likeliest tokens that together reach p, 1: all
    seed: Array  # [B] uint32
    stream: Array  # [B] int32; which of several samples with one seed


def uniforms(rows: Sampling, position: Array) -> Array:
    """What `sample` chooses by: a number in [0, 1) for each row and position [B,...], the same."""

    def one(seed: Array, stream: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), stream)
        return jax.random.uniform(jax.random.fold_in(key, position))

    for _ in position.shape[1:]:
        one = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(one)(rows.seed, rows.stream, position)


def sample(logits: Array, rows: Sampling, uniform: Array, *, truncate: bool) -> tuple[Array, Array]:
    """The next token [B] int32 of each row, and its log-probability [B] in nats.

    logits [B,V] float32; uniform [B] of the chosen token's position (see `uniforms`). The
    log-probability is the model's: at temperature 1 and over all tokens, whatever the row was
    sampled with. Where `truncate` is False top_k and top_p are not looked at, which saves sorting
    the vocabulary.
    """
    warm = rows.temperature > 0
    scaled = logits / jnp.where(warm, rows.temperature, 1.0)[:, None]
    top = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled - top)
    if truncate:
        lowest = _lowest_kept(scaled, rows.top_k, rows.top_p)
        weights = jnp.where(scaled >= lowest[:, None], weights, 0.0)
    drawn = _draw(weights, uniform)
    # The first of the likeliest; XLA compiles argmax to something much slower on a CPU.
    vocab = jnp.arange(logits.shape[1], dtype=jnp.int32)
    likeliest = jnp.min(jnp.where(scaled == top, vocab[None, :], vocab.size - 1), axis=-1)
    token = jnp.where(warm, drawn, likeliest)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def likeliest(logits: Array, count: int) -> tuple[Array, Array]:
    """The `count` likeliest tokens [B,count] int32 of each row, best first, and log-probabilities.

    logits [B,V] float32; log-probabilities are at temperature 1, in nats.
    """
    if not count:
        shape = (logits.shape[0], 0)
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    best, tokens = jax.lax.top_k(logits, count)
    return tokens, best - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _draw(weights: Array, uniform: Array) -> Array:
    """Inverts the cumulative distribution of weights [B,V] at uniform [B]: [B] int32.

    In two levels, blocks of tokens and then tokens, since a cumulative sum over a whole vocabulary
    is slow; and with one random number a row instead of Gumbel noise for every token.
    """
    batch, vocab = weights.shape
    size = _block_size(vocab)
    count = -(-vocab // size)
    padding = count * size - vocab
    weights = jnp.pad(weights, ((0, 0), (0, padding))) if padding else weights
    blocks = weights.reshape(batch, count, size)
    sums = jnp.sum(blocks, axis=-1)
    target = uniform * jnp.sum(sums, axis=-1)
    block = _first_above(sums, target)
    before = jnp.where(jnp.arange(count)[None, :] < block[:, None], sums, 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * size + _first_above(inside, target - jnp.sum(before, axis=-1))


def _block_size(vocab: int) -> int:
    """About the square root, and if possible a divisor, so that nothing is copied to pad it."""
    root = math.isqrt(vocab - 1) + 1
    near = range(root, root // 4, -1)
    return next((size for size in near if vocab % size == 0), root)


def _first_above(weights: Array, target: Array) -> Array:
    """The first index at which the cumulative sum of weights [B,N] exceeds target [B].

    Where rounding leaves none, the last that has any weight.
    """
    index = jnp.sum(jnp.cumsum(weights, axis=-1) <= target[:, None], axis=-1, dtype=jnp.int32)
    order = jnp.arange(weights.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(weights > 0, order[None, :], 0), axis=-1)
    return jnp.minimum(index, last)


def _lowest_kept(scaled: Array, top_k: Array, top_p: Array) -> Array:
    """The lowest of scaled logits [B,V] that is kept, [B]; ties with it are kept too.

    First the top_k likeliest; then, of their probabilities, the fewest that reach top_p.
    """
    vocab = scaled.shape[1]
    ordered = -jnp.sort(-scaled, axis=-1)
    count = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)
    kept = jnp.arange(vocab)[None, :] < count[:, None]
    probs = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    reached = jnp.cumsum(probs, axis=-1) - probs  # by the tokens before
    kept &= (reached < top_p[:, None]) | (top_p[:, None] >= 1.0)
    kept |= jnp.arange(vocab)[None, :] == 0
    lowest = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1)
    return jnp.where((top_k > 0) | (top_p < 1.0), lowest, -jnp.inf)
