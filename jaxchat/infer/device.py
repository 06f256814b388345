"""The engine's compiled functions. Module-level, so that engines of one configuration share them.

Axes: B slots of the engine, R prompts read at once, N decode steps of a dispatch, V vocabulary,
A alternatives told of each token.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxchat.config import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.attention import Implementation
from jaxchat.model.cache import Cache, init_cache, narrow, place, widen
from jaxchat.sampling import Sampling, likeliest, sample


class Rows(NamedTuple):
    """What the host says of every slot before a dispatch."""

    token: Array  # [B] int32, the last of each row, not yet in the cache
    active: Array  # [B] bool
    remaining: Array  # [B] int32, tokens it may still have
    forced: Array  # [B,N] int32, tokens to take before any is sampled
    forced_count: Array  # [B] int32
    sampling: Sampling


class Chosen(NamedTuple):
    """Tokens, and what else could have stood in their place."""

    token: Array  # [R] int32
    logprob: Array  # [R] float32
    others: Array  # [R,A] int32, likeliest first
    other_logprobs: Array  # [R,A] float32


class Emitted(NamedTuple):
    """The tokens of a dispatch; those of row b are the leading ones, where `active` is True."""

    token: Array  # [N,B] int32
    logprob: Array  # [N,B] float32
    active: Array  # [N,B] bool
    others: Array  # [N,B,A] int32, likeliest first
    other_logprobs: Array  # [N,B,A] float32


@functools.partial(jax.jit, static_argnames=("config", "dtype", "attention"))
def read_prompts(
    params: Any,
    tokens: Array,
    lengths: Array,
    *,
    config: ModelConfig,
    dtype: DTypeLike,
    attention: Implementation,
) -> tuple[Array, Cache]:
    """Prompts [R,T] of `lengths` [R], padded on the right: logits [R,V] after each, and a cache."""
    cache = init_cache(config, tokens.shape[0], tokens.shape[1], dtype)
    return gpt.prefill(params, tokens, lengths, cache, config, dtype=dtype, attention=attention)


@functools.partial(jax.jit, donate_argnames="cache")
def place_rows(cache: Cache, prompts: Cache, source: Array, target: Array) -> Cache:
    """The cache with prompt source[i] [R] in slot target[i] [R]; one past the last is padding."""
    return place(cache, prompts, source, target)


@functools.partial(jax.jit, static_argnames=("truncate", "alternatives"))
def first_tokens(
    logits: Array,
    lengths: Array,
    source: Array,
    sampling: Sampling,
    *,
    truncate: bool,
    alternatives: int,
) -> Chosen:
    """The token that follows prompt source[i] [R]."""
    return _choose(logits[source], sampling, lengths[source], truncate, alternatives)


def _choose(
    logits: Array, sampling: Sampling, position: Array, truncate: bool, alternatives: int
) -> Chosen:
    token, logprob = sample(logits, sampling, position, truncate=truncate)
    if alternatives:
        return Chosen(token, logprob, *likeliest(logits, alternatives))
    shape = (*token.shape, 0)
    return Chosen(token, logprob, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


@functools.partial(
    jax.jit,
    static_argnames=("config", "dtype", "span", "pauses", "truncate", "alternatives"),
    donate_argnames="cache",
)
def decode_steps(
    params: Any,
    cache: Cache,
    rows: Rows,
    *,
    config: ModelConfig,
    dtype: DTypeLike,
    span: int,
    pauses: tuple[int, ...],
    truncate: bool,
    alternatives: int,
) -> tuple[Cache, Emitted]:
    """N tokens for every active row, or fewer for one that comes to its end.

    A row stands still after it has sampled one of `pauses` or has none remaining. Only the first
    `span` slots of the cache are looked at: no active row may come to have more positions.
    """

    def step(carry: tuple[Cache, Array, Array, Array], number: Array) -> tuple[Any, Emitted]:
        cache, token, active, remaining = carry
        logits, cache = gpt.decode(params, token, cache, config, active=active, dtype=dtype)
        chosen = _choose(logits, rows.sampling, cache.length, truncate, alternatives)
        choose = number >= rows.forced_count
        token = jnp.where(active, jnp.where(choose, chosen.token, rows.forced[:, number]), token)
        emitted = Emitted(token, chosen.logprob, active, chosen.others, chosen.other_logprobs)
        remaining = remaining - active.astype(remaining.dtype)
        paused = choose & jnp.isin(token, jnp.array(pauses, token.dtype))
        return (cache, token, active & ~paused & (remaining > 0), remaining), emitted

    # A scan of known length: of a loop that stops early, the host would wait for every step.
    start = (narrow(cache, span), rows.token, rows.active, rows.remaining)
    numbers = jnp.arange(rows.forced.shape[1], dtype=jnp.int32)
    (narrowed, *_), emitted = lax.scan(step, start, numbers)
    return widen(cache, narrowed), emitted
