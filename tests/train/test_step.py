"""The training step: accumulation and masks must not change what is computed."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_training import (
    CLASSIC,
    CLASSIC_OPTIM,
    MODERN,
    VOCAB,
    T,
    random_params,
)

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.model import gpt
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.train.step import TrainState, batch_loss, init_state, loss_and_grads, make_train_step

ROWS, STEPS = 16, 4
Batch = dict[str, np.ndarray]


def make_batch(seed: int, rows: int = ROWS, advantage: bool = False) -> Batch:
    """Rows whose masks have very different sums: the mean of means is far from the mean."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.05, 0.95, rows)[:, None]
    batch = {
        "tokens": rng.integers(0, VOCAB, (rows, T + 1)).astype(np.int32),
        "mask": (rng.random((rows, T + 1)) < share).astype(np.float32),
    }
    if advantage:
        batch["advantage"] = rng.normal(size=rows).astype(np.float32)
    return batch


def split(batch: Batch, accumulation: int) -> Batch:
    return {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in batch.items()}


def plain_loss(params: Any, batch: Batch, model: ModelConfig) -> jax.Array:
    """-mean of advantage * log p over the counted tokens, by the plain formula."""
    logprobs = jax.nn.log_softmax(gpt.forward(params, batch["tokens"][:, :-1], model))
    targets = batch["tokens"][:, 1:, None]
    chosen = jnp.take_along_axis(logprobs, targets, axis=-1)[..., 0]
    weights = batch.get("advantage", np.ones(len(targets), np.float32))[:, None]
    mask = batch["mask"][:, 1:]
    return -(chosen * mask * weights).sum() / mask.sum()


def assert_trees_close(got: Any, want: Any, atol: float) -> None:
    def check(path: Any, a: Any, b: Any) -> None:
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, got, want)


@pytest.mark.parametrize(
    ("model", "advantage"), [(CLASSIC, False), (MODERN, True)], ids=["classic", "modern, rewards"]
)
def test_accumulated_gradients_equal_those_of_the_whole_batch_and_of_the_plain_formula(
    model: ModelConfig, advantage: bool
) -> None:
    params, batch = random_params(model), make_batch(0, advantage=advantage)
    grads_of = jax.jit(lambda p, b: loss_and_grads(p, b, model))
    whole, total, weight = grads_of(params, split(batch, 1))
    parts, parts_total, parts_weight = grads_of(params, split(batch, 4))
    assert float(weight) == float(parts_weight) == batch["mask"][:, 1:].sum()
    np.testing.assert_allclose(parts_total, total, rtol=1e-5)
    # the sums are of some 130 tokens' gradients
    assert_trees_close(parts, whole, atol=1e-4)

    plain = jax.jit(jax.value_and_grad(lambda p: plain_loss(p, batch, model)))
    want, want_grads = plain(params)
    np.testing.assert_allclose(total / weight, want, rtol=1e-5)
    assert_trees_close(jax.tree.map(lambda g: g / weight, whole), want_grads, atol=1e-5)


def test_the_first_tokens_mask_counts_for_nothing() -> None:
    """It is predicted from nothing."""
    params, batch = random_params(CLASSIC), make_batch(2)
    flipped = {**batch, "mask": batch["mask"].copy()}
    flipped["mask"][:, 0] = 1 - flipped["mask"][:, 0]
    loss = jax.jit(lambda batch: batch_loss(params, batch, CLASSIC))
    assert loss(batch) == loss(flipped)


def fresh_state(model: ModelConfig, optimizer: Any, mesh: Mesh) -> TrainState:
    return init_state(random_params(model), optimizer, mesh)


@pytest.fixture(scope="module")
def one() -> Any:
    """A classic step on one device, its mesh, and a function that makes a fresh state."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(CLASSIC, CLASSIC_OPTIM, STEPS)
    step = make_train_step(CLASSIC, optimizer, mesh)
    return step, mesh, lambda: fresh_state(CLASSIC, optimizer, mesh)


@pytest.mark.usefixtures("optax_promotion")
def test_a_batch_without_counted_tokens_is_harmless(one: Any) -> None:
    step, mesh, fresh = one
    state = fresh()
    before = jax.device_get(state.params)
    batch = split(make_batch(0), 2)
    batch["mask"] = np.zeros_like(batch["mask"])
    state, metrics = step(state, put_batch(mesh, batch))
    assert {k: float(v) for k, v in metrics.items()} == {"loss": 0, "weight": 0, "grad_norm": 0}
    # without decay nothing moves
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    state, metrics = step(state, put_batch(mesh, split(make_batch(1), 2)))
    assert np.isfinite(float(metrics["loss"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


@pytest.mark.usefixtures("optax_promotion")
def test_one_micro_batch_without_counted_tokens_changes_nothing(one: Any) -> None:
    """Its weight of zero must not be divided by, nor count as a share of the mean."""
    step, mesh, fresh = one
    state = fresh()
    params = jax.device_get(state.params)
    batch = make_batch(3)
    batch["mask"][: ROWS // 2] = 0
    _, metrics = step(state, put_batch(mesh, split(batch, 2)))
    plain = jax.jit(lambda params: plain_loss(params, batch, CLASSIC))
    assert float(metrics["loss"]) == pytest.approx(float(plain(params)), rel=1e-5)


@pytest.mark.usefixtures("optax_promotion")
def test_a_micro_batch_without_an_advantage_only_weighs() -> None:
    """What it would give is 0 exactly; weights that are no numbers show that it is left out."""
    params, batch = random_params(CLASSIC), make_batch(3, advantage=True)
    batch["advantage"][ROWS // 2 :] = 0
    sums = jax.jit(lambda batch: loss_and_grads(params, batch, CLASSIC))
    found, loss, weight = sums(split(batch, 2))
    wanted, expected, whole = sums(split(batch, 1))
    assert (float(loss), float(weight)) == pytest.approx((float(expected), float(whole)), rel=1e-5)
    assert_trees_close(found, wanted, 1e-4)
    poor = jax.tree.map(lambda x: x * jnp.nan, params)
    batch["advantage"][:] = 0
    nothing = jax.jit(lambda batch: loss_and_grads(poor, batch, CLASSIC))(split(batch, 2))
    assert float(nothing[1]) == 0
    assert not any(np.asarray(grad).any() for grad in jax.tree.leaves(nothing[0]))


@pytest.mark.usefixtures("optax_promotion")
def test_the_state_is_donated_and_the_step_traced_once(one: Any) -> None:
    step, mesh, fresh = one
    state = fresh()
    for number in range(3):
        old: TrainState = state
        state, _ = step(state, put_batch(mesh, split(make_batch(number), 2)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert step.jitted._cache_size() == 1


@pytest.mark.usefixtures("optax_promotion")
def test_stages_that_differ_in_hyperparameters_share_a_program(one: Any) -> None:
    """And each is trained by its own numbers, as by an optimizer that has them as constants."""
    step, mesh, fresh = one
    other = replace(
        CLASSIC_OPTIM, matrix_lr=0.01, embedding_lr=0.3, momentum_start=0.9, warmdown_ratio=0.7,
        grad_clip=0.5,
    )  # fmt: skip
    optimizer = make_optimizer(CLASSIC, other, STEPS + 3, lr_scale=0.5)
    later = make_train_step(CLASSIC, optimizer, mesh)
    assert later.jitted is step.jitted
    constant = make_train_step(CLASSIC, optimizer.chain, mesh)
    assert constant.jitted is not step.jitted
    found, wanted = fresh(), fresh()
    for number in range(STEPS + 3):
        batch = put_batch(mesh, split(make_batch(number), 2))
        found, metrics = later(found, batch)
        wanted, expected = constant(wanted, batch)
        assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found.params, wanted.params
    )
