"""Logits of many positions, a few at a time: all of them would not fit into memory.

Axes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt

Arrays = tuple[jax.Array, ...]


def read_logits(
    params: gpt.Params,
    x: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    model: ModelConfig,
    size: int,
    read: Callable[[jax.Array, jax.Array], Arrays],
) -> Arrays:
    """The arrays [N,...] that `read` makes of logits [size,V] and targets [size], from features
    x [N,D].

    Only the first `count` are computed, up to a multiple of `size`: for a small model with a large
    vocabulary this is most of the work. The others are 0.
    """
    total = len(targets)
    size = min(size, total)
    x, targets = (jnp.pad(a, ((0, -total % size), *((0, 0),) * (a.ndim - 1))) for a in (x, targets))

    def one(start: jax.Array) -> Arrays:
        logits = gpt.unembed(params, lax.dynamic_slice_in_dim(x, start, size), model)
        return read(logits, lax.dynamic_slice_in_dim(targets, start, size))

    def step(number: jax.Array, found: Arrays) -> Arrays:
        start = number * size
        return tuple(
            lax.dynamic_update_slice_in_dim(old, new, start, 0)
            for old, new in zip(found, one(start), strict=True)
        )

    shapes = jax.eval_shape(one, count)
    nothing = tuple(jnp.zeros((len(targets), *s.shape[1:]), s.dtype) for s in shapes)
    found = lax.fori_loop(0, (count + size - 1) // size, step, nothing)
    return tuple(array[:total] for array in found)
