"""What host and device tell each other in one array."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.infer.batch import picks_of, slots_to_fill
from jaxchat.infer.device import Emitted


@pytest.mark.parametrize("alternatives", [0, 3])
def test_picks_are_what_the_device_emitted(alternatives):
    rng = np.random.default_rng(0)
    steps, slots = 4, 5
    token = rng.integers(0, 1000, (steps, slots), np.int32)
    logprob = -rng.random((steps, slots), np.float32)
    counts = [4, 0, 1, 3, 4]
    active = np.arange(steps)[:, None] < np.array(counts)
    others = rng.integers(0, 1000, (steps, slots, alternatives), np.int32)
    values = -rng.random((steps, slots, alternatives), np.float32)
    emitted = Emitted(*map(jnp.asarray, (token, logprob, active, others, values)))
    picks = picks_of(np.asarray(emitted.packed()))
    for slot, count in enumerate(counts):
        assert picks[slot].tokens == token[:count, slot].tolist()
        assert picks[slot].logprobs == logprob[:count, slot].tolist()
        want = [tuple(zip(others[n, slot], values[n, slot], strict=True)) for n in range(count)]
        assert picks[slot].alternatives == (want if alternatives else [])


def test_slots_are_filled_up_with_one_that_there_is_not():
    assert slots_to_fill([3, 1], 4).tolist() == [3, 1, 4, 4]
