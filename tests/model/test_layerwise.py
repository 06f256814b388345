"""A step of decoding in parts gives what a whole one gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import VARIANTS, lively_params

from jaxchat.config.derive import middle_layer
from jaxchat.model import layerwise
from jaxchat.model.backend import PLAIN
from jaxchat.model.gpt import decode
from jaxchat.model.kv_cache import View, init_cache


def step(params, tokens, cache, config):
    """A step in parts: logits, keys, values and the embedding that are kept."""
    parts = layerwise.parts_of(params, config)
    slots = tuple(k.shape[2] for k in cache.k)
    position = cache.length
    first = layerwise.start(parts.embedding, tokens, position, cache.previous, slots, config, PLAIN)
    x = middle = first.x
    kept = []
    for number, (part, *old) in enumerate(zip(parts.layers, cache.k, cache.v, strict=True)):
        here = first._replace(view=View(first.view.rope, (first.view.visible[number],)))
        place = jnp.int32(number)
        x, new = layerwise.layer(part, place, x, here, tuple(old), tokens, position, config, PLAIN)
        kept.append(new)
        middle = x if number == middle_layer(config.n_layer) else middle
    logits = layerwise.logits(parts.head, x, middle, config, PLAIN)
    return logits, *map(tuple, zip(*kept, strict=True)), first.embedded[:, 0]


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_step_in_parts_is_a_step(config):
    params = jax.tree.map(jnp.asarray, lively_params(config))
    cache = init_cache(config, 2, 64)._replace(length=jnp.array([0, 3], jnp.int32))
    whole = jax.jit(lambda tokens, cache: decode(params, tokens, cache, config))
    in_parts = jax.jit(lambda tokens, cache: step(params, tokens, cache, config))
    for number in range(3):
        tokens = jnp.array([5 + number, 11 * number], jnp.int32)
        logits, k, v, previous = in_parts(tokens, cache)
        wanted, cache = whole(tokens, cache)
        for got, want in zip(
            jax.tree.leaves((logits, k, v, previous)),
            jax.tree.leaves((wanted, cache.k, cache.v, cache.previous)),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
