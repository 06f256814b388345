"""The key/value cache: an explicit pytree of fixed shapes, new cache out for old cache in.

Axes: B batch, T time, S slots of a layer, G key/value heads, K head size, D width.

The key of position p is in slot p % S of its layer. A full layer has a slot for every position; a
short-window layer has only as many as its window sees, in whole blocks, and new keys take the place
of old ones.
Slots come after heads, as the products of decoding want them: with heads last they take five times
as long on a CPU (256 rows, 256 slots), all of it transposing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxchat.config.derive import windows
from jaxchat.config.schema import ModelConfig
from jaxchat.model.rope import Rope, rope_table

BLOCK = 64  # slots that attention sums over at once, see `kernels.cached`


class Cache(NamedTuple):
    """Keys and values of every layer, and the length of each row."""

    k: tuple[Float[Array, "B G S K"], ...]  # per layer
    v: tuple[Float[Array, "B G S K"], ...]
    length: Int[Array, " B"]  # positions already in the cache
    previous: Float[Array, "B D"]  # the last token's embedding, for smear


def init_cache(
    config: ModelConfig, batch: int, length: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """An empty cache for `batch` rows of at most `length` positions."""

    def layers() -> tuple[Array, ...]:
        return tuple(
            jnp.zeros((batch, config.n_kv_head, slots, config.head_dim), dtype)
            for slots in slots_of(config, length)
        )

    return Cache(
        k=layers(),
        v=layers(),
        length=jnp.zeros((batch,), jnp.int32),
        previous=jnp.zeros((batch, config.n_embd), dtype),
    )


def slots_of(config: ModelConfig, length: int) -> tuple[int, ...]:
    """The slots of each layer in a cache for `length` positions."""
    return tuple(min(length, whole_blocks(window + 1)) for window in windows(config))


def whole_blocks(slots: int) -> int:
    """`slots` rounded up to whole blocks."""
    return -(-slots // BLOCK) * BLOCK


def fill(
    values: Float[Array, "B T G K"], lengths: Int[Array, " B"], slots: int
) -> Float[Array, "B G {slots} K"]:
    """The slots of a layer after rows of `lengths` positions.

    Slots that hold no position have arbitrary content.
    """
    time = values.shape[1]
    values = values.transpose(0, 2, 1, 3)
    if time <= slots:
        return jnp.pad(values, ((0, 0), (0, 0), (0, slots - time), (0, 0)))
    position = jnp.clip(slot_positions(lengths, slots), 0, time - 1)
    return jnp.take_along_axis(values, position[:, None, :, None], axis=2)


def write(
    layer: Float[Array, "B G S K"], new: Float[Array, "B G K"], position: Int[Array, " B"]
) -> Float[Array, "B G S K"]:
    """Puts `new` into the slots of `position`.

    In a layer that is full the oldest key gives way.
    """
    batch, _, slots, _ = layer.shape
    # A single row is duplicated with a dropped index: XLA turns a one-row scatter into an update
    # that it fuses into what reads the layer, and for that it copies the layer, four times a step.
    count = max(batch, 2)
    slot = jnp.broadcast_to(position % slots, (count,))
    new = jnp.broadcast_to(new, (count, *new.shape[1:]))
    return layer.at[jnp.arange(count), :, slot].set(new, unique_indices=True, mode="drop")


def slot_positions(lengths: Int[Array, " B"], slots: int) -> Int[Array, "B {slots}"]:
    """The position in each slot of a layer after `lengths` positions; negative: none."""
    last = lengths[:, None] - 1
    return last - (last - jnp.arange(slots, dtype=lengths.dtype)[None, :]) % slots


def visible_slots(position: Int[Array, " B"], slots: int, window: int) -> Bool[Array, "B {slots}"]:
    """Which slots of a layer a query at `position` sees, its own key written."""
    held = slot_positions(position + 1, slots)
    return (held >= 0) & (held >= position[:, None] - window)


class View(NamedTuple):
    """What decoding knows of a position before its token: rotation, and visible slots."""

    rope: Rope  # T = 1
    visible: tuple[Bool[Array, "B S"], ...]  # per layer


def view_of(
    position: Int[Array, " B"], slots: Sequence[int], config: ModelConfig, dtype: DTypeLike
) -> View:
    """The View from `position` in a cache with `slots` in each layer."""
    kinds = list(zip(slots, windows(config), strict=True))
    visible = {kind: visible_slots(position, *kind) for kind in kinds}  # most layers are alike
    rope = rope_table(position[:, None], config, dtype)
    return View(rope, tuple(visible[kind] for kind in kinds))


def resize(cache: Cache, slots: tuple[int, ...]) -> Cache:
    """The cache with `slots` in each layer (see `slots_of`); all rows must fit in them.

    A layer grows or shrinks only while its rows have no more positions than slots, so that each
    position stays where it is.
    """

    def fit(layer: Array, count: int) -> Array:
        extra = max(0, count - layer.shape[2])
        return jnp.pad(layer[:, :, :count], ((0, 0), (0, 0), (0, extra), (0, 0)))

    return cache._replace(k=tuple(map(fit, cache.k, slots)), v=tuple(map(fit, cache.v, slots)))


def place(cache: Cache, prompt: Cache, rows: Int[Array, " N"]) -> Cache:
    """Copies a cache of one row, which may have fewer slots, to `rows` of `cache`.

    Valid rows come first; numbers past the last are dropped.
    """
    placed: Cache = lax.platform_dependent(
        cache, prompt, rows, cpu=copy_to_rows, default=scatter_to_rows
    )
    return placed


def copy_to_rows(cache: Cache, prompt: Cache, rows: Int[Array, " N"]) -> Cache:
    """`place`, row by row: on a CPU a scatter takes 14 ms for one of 64 rows, and this 0.2."""

    def copy(number: Array, cache: Cache) -> Cache:
        row = rows[number]

        def put(old: Array, new: Array) -> Array:
            start = (row, *(jnp.zeros_like(row) for _ in old.shape[1:]))
            return lax.dynamic_update_slice(old, new, start)

        placed: Cache = jax.tree.map(put, cache, prompt)
        return placed

    there = jnp.sum(rows < cache.length.shape[0], dtype=jnp.int32)
    placed: Cache = lax.fori_loop(jnp.int32(0), there, copy, cache)
    return placed


def scatter_to_rows(cache: Cache, prompt: Cache, rows: Int[Array, " N"]) -> Cache:
    """`place`, all at once: a GPU would come back to the host for every turn of a loop."""

    def put(old: Array, new: Array) -> Array:
        where = (rows, *(slice(0, size) for size in new.shape[1:]))
        return old.at[where].set(new, mode="drop", wrap_negative_indices=False)

    placed: Cache = jax.tree.map(put, cache, prompt)
    return placed
