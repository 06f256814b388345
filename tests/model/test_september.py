"""What September 2026 changed in the model, each switch alone: loss and gradient by differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpt_reference import logits_of, to_float64
from model_variants import lively_params

from jaxchat.config.derive import derive_model
from jaxchat.model.gpt import init_params
from jaxchat.train.step import batch_loss

SIZES = {"sequence_len": 16, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
JULY = dataclasses.replace(derive_model(3, "modern", 23), **SIZES)
SEPTEMBER = dataclasses.replace(derive_model(3, "september", 23), **SIZES)
CHANGED = {
    "smear off": dataclasses.replace(JULY, smear=False),
    "a short window of 5": dataclasses.replace(JULY, short_window=5),
    "all": dataclasses.replace(SEPTEMBER, short_window=5),
}
STEP = 1e-5


def oracle_loss(params, row, config):
    """The mean loss of a row [T+1], in float64."""
    logits = logits_of(params, row[:-1], config)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(row) - 1), row[1:]].mean()


def moved(params, path, index, step):
    """The parameters with one entry moved."""
    tree = to_float64(params)
    node = tree
    for key in path[:-1]:
        node = node[key.key]
    leaf = node[path[-1].key] = node[path[-1].key].copy()
    leaf[index] += step
    return tree


@pytest.mark.parametrize("config", CHANGED.values(), ids=CHANGED.keys())
def test_loss_and_the_largest_entry_of_every_gradient(config):
    params = lively_params(config)
    row = np.random.default_rng(3).integers(0, config.vocab_size, 17, np.int32)
    batch = {"tokens": row[None], "mask": np.ones((1, 17), np.float32)}

    def mean(params):
        total, weight = batch_loss(params, batch, config)
        return total / weight

    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    assert float(loss) == pytest.approx(oracle_loss(params, row, config), rel=1e-5)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        grad = np.asarray(grad)
        index = np.unravel_index(np.abs(grad).argmax(), grad.shape)
        up, down = (oracle_loss(moved(params, path, index, s), row, config) for s in (STEP, -STEP))
        name = jax.tree_util.keystr(path)
        assert grad[index] == pytest.approx((up - down) / (2 * STEP), rel=1e-3, abs=1e-6), name


def test_a_window_longer_than_the_context_is_the_context():
    row = jnp.arange(16, dtype=jnp.int32)[None]
    params = lively_params(SEPTEMBER)
    full = dataclasses.replace(SEPTEMBER, window_pattern="L", short_window=0)
    losses = [
        batch_loss(params, {"tokens": row, "mask": jnp.ones((1, 16))}, config)[0]
        for config in (SEPTEMBER, full)
    ]
    assert losses[0] == losses[1]


def test_initial_value_embeddings_are_normal_and_nothing_else_changes():
    wide = dataclasses.replace(JULY, vocab_size=4_000, n_embd=64)
    before = init_params(jax.random.key(0), wide)
    after = init_params(jax.random.key(0), dataclasses.replace(wide, value_embeds_std=1.0))
    tables = {name for name in before if name.startswith("value_embeds")}
    assert tables == {"value_embeds_0", "value_embeds_2"}
    for name in before:
        same = jax.tree.all(jax.tree.map(jnp.array_equal, before[name], after[name]))
        assert same == (name not in tables), name
    for name in tables:
        table = np.asarray(after[name]["embedding"])
        assert table.std() == pytest.approx(1.0, rel=0.01)
        assert 0.002 < (np.abs(table) > 3).mean() < 0.0035, "it should be normal"
