"""The cache by itself: where positions stand, and moving rows about."""

import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import MODERN

from jaxchat.model.kv_cache import (
    Cache,
    fill,
    init_cache,
    place,
    resize,
    scatter_to_rows,
    slot_positions,
    slots_of,
    visible_slots,
    write,
)


def test_slots_hold_the_latest_positions_written_by_hand():
    got = slot_positions(jnp.array([0, 1, 3, 4, 6], jnp.int32), 4)
    want = [
        [-4, -3, -2, -1],  # negative: nothing yet
        [0, -3, -2, -1],
        [0, 1, 2, -1],
        [0, 1, 2, 3],
        [4, 5, 2, 3],
    ]
    assert got.tolist() == want


@pytest.mark.parametrize("length", [1, 4, 5, 11])
def test_filling_at_once_is_writing_one_by_one(length):
    values = jnp.arange(1, 12, dtype=jnp.float32)[None, :, None, None]  # [1,11,1,1]
    layer = jnp.zeros((1, 1, 5, 1))
    for position in range(length):
        layer = write(layer, values[:, position], jnp.array([position]))
    filled = fill(values, jnp.array([length], jnp.int32), 5)
    held = np.asarray(slot_positions(jnp.array([length], jnp.int32), 5)[0]) >= 0
    assert filled[0, 0, held, 0].tolist() == layer[0, 0, held, 0].tolist()


def numbered(batch, length):
    """A cache in which every number is another."""
    empty = init_cache(MODERN, batch, length)
    count = iter(range(100))

    def fresh(x):
        values = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape) + 1e6 * next(count)
        return values.astype(x.dtype)

    return Cache(
        tuple(map(fresh, empty.k)),
        tuple(map(fresh, empty.v)),
        jnp.arange(batch, dtype=jnp.int32) + 5,
        fresh(empty.previous),
    )


def test_growing_and_shrinking_keep_what_is_in_the_slots():
    cache = numbered(2, 64)
    large = resize(cache, slots_of(MODERN, 160))
    empty = init_cache(MODERN, 2, 160)
    assert [k.shape for k in large.k] == [k.shape for k in empty.k]
    assert all(
        jnp.array_equal(new[:, :, :64], old) for new, old in zip(large.k, cache.k, strict=True)
    )
    back = resize(large, slots_of(MODERN, 64))
    assert all(map(jnp.array_equal, back.k + back.v, cache.k + cache.v))
    assert jnp.array_equal(large.length, cache.length)


@pytest.mark.parametrize("put", [place, scatter_to_rows])
def test_place_copies_one_row_to_others_and_leaves_the_rest(put):
    cache, prompt = numbered(4, 160), numbered(1, 32)
    placed = put(cache, prompt, jnp.array([2, 0, 4, 4], jnp.int32))  # there is no row 4
    assert placed.length.tolist() == [5, 6, 5, 8]
    for new, old, one in zip(
        placed.k + placed.v, cache.k + cache.v, prompt.k + prompt.v, strict=True
    ):
        for row in (0, 2):
            assert jnp.array_equal(new[row, :, :32], one[0])
            assert jnp.array_equal(new[row, :, 32:], old[row, :, 32:])
        for row in (1, 3):
            assert jnp.array_equal(new[row], old[row])
    for row in (0, 2):
        assert jnp.array_equal(placed.previous[row], prompt.previous[0])


@pytest.mark.parametrize(("slots", "window"), [(64, 64), (64, 20), (128, 300)])
def test_a_query_sees_its_window_of_the_slots_that_are_written(slots, window):
    for position in (0, 5, 63, 64, 100):
        if window >= slots <= position:
            continue  # a cache that is too small for what is seen
        seen = visible_slots(jnp.array([position], jnp.int32), slots, window)[0]
        first = max(0, position - window)
        assert sorted(np.flatnonzero(seen)) == sorted(
            {p % slots for p in range(first, position + 1)}
        )
