"""What decoding remembers: an explicit pytree of fixed shapes, new cache out for old cache in.

Axes: B batch, T time, S slots of a layer, G key/value heads, K head size, D width.

The key of position p is in slot p % S of its layer. A full layer has a slot for every position; a
short-window layer has only as many as its window sees, and new keys take the place of old ones.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxchat.config import ModelConfig
from jaxchat.scaling import windows


class Cache(NamedTuple):
    """Keys and values of every layer, and how far each row has come."""

    k: tuple[Array, ...]  # per layer [B,S,G,K]
    v: tuple[Array, ...]
    length: Array  # [B] int32, positions already in the cache
    previous: Array  # [B,D] the last token's embedding, for smear


def init_cache(
    config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """An empty cache for `batch` rows of at most `length` positions."""

    def layers() -> tuple[Array, ...]:
        return tuple(
            jnp.zeros((batch, min(length, window + 1), config.n_kv_head, config.head_dim), dtype)
            for window in windows(config)
        )

    return Cache(
        k=layers(),
        v=layers(),
        length=jnp.zeros((batch,), jnp.int32),
        previous=jnp.zeros((batch, config.n_embd), dtype),
    )


def fill(values: Array, lengths: Array, slots: int) -> Array:
    """The slots of a layer after rows of `lengths` [B] positions: [B,T,G,K] -> [B,slots,G,K].

    Slots that hold no position have arbitrary content.
    """
    time = values.shape[1]
    if time <= slots:
        return jnp.pad(values, ((0, 0), (0, slots - time), (0, 0), (0, 0)))
    position = slot_positions(lengths, slots)
    position = jnp.clip(position, 0, time - 1)[:, :, None, None]
    return jnp.take_along_axis(values, position, axis=1)


def write(layer: Array, new: Array, position: Array) -> Array:
    """Puts `new` [B,G,K] into the slots [B,S,G,K] of `position` [B].

    In a layer that is full the oldest key gives way.
    """
    batch, slots = layer.shape[:2]
    return layer.at[jnp.arange(batch), position % slots].set(new, unique_indices=True)


def slot_positions(lengths: Array, slots: int) -> Array:
    """The position in each slot of a layer after `lengths` [B] positions: [B,S], negative: none."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(slots, dtype=lengths.dtype)[None, :]) % slots
