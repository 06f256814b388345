"""A warm start carries averages of gradients over, and nothing else."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxchat.config.derive import derive_horizon, derive_model
from jaxchat.config.schema import ModelConfig, OptimConfig, StageOptimConfig
from jaxchat.model import gpt
from jaxchat.optim.muon import MomentumState, NorMuonState
from jaxchat.optim.optimizer import carry_over, make_optimizer

pytestmark = pytest.mark.usefixtures("optax_promotion")

MODEL = replace(derive_model(2, "modern", 300, 16), n_head=2, n_kv_head=2, n_embd=32)
BASE = derive_horizon(derive_model(12, "modern", 300), "modern", 12.0).optim
MID = StageOptimConfig(warm_start=True).within(BASE)  # without base's decay


def gradients(seed: int) -> Any:
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), MODEL))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def trained(optim: OptimConfig, model: ModelConfig, steps: int) -> tuple[Any, Any]:
    """The optimizer's state after some steps, and the parameters."""
    optimizer = make_optimizer(model, optim, 10)

    @jax.jit
    def update(state: Any, params: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    params = gradients(0)
    state = jax.jit(optimizer.init)(params)
    for step in range(steps):
        state, params = update(state, params, gradients(step + 1))
    return state, params


def found(state: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def assert_equal(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_averages_are_carried_and_schedules_start_anew() -> None:
    before, params = trained(BASE, MODEL, 3)
    fresh = make_optimizer(MODEL, MID, 10).init(params)
    warm = carry_over(fresh, before)
    assert jax.tree.structure(warm) == jax.tree.structure(fresh)

    adam = found(warm, optax.ScaleByAdamState)
    assert len(adam) == 6, "head, embedding, value embeddings and three kinds of scalars"
    assert_equal(adam, found(before, optax.ScaleByAdamState))
    assert [int(state.count) for state in adam] == [3] * 6, "bias is corrected as before"
    assert_equal(found(warm, NorMuonState), found(before, NorMuonState))
    (momentum,), (of_base,) = found(warm, MomentumState), found(before, MomentumState)
    assert_equal(momentum.momentum, of_base.momentum)
    assert (int(momentum.steps), int(of_base.steps)) == (0, 3), "the momentum's own warm-up"
    for rate in found(warm, optax.ScaleByScheduleState):
        assert int(rate.count) == 0, "the rate's schedule"


def test_the_first_step_is_that_of_the_averages() -> None:
    """Plain Muon's first update, worked out from the average that base had."""
    base = replace(BASE, weight_decay=0.3)
    before, params = trained(base, MODEL, 3)
    (of_base,) = found(before, MomentumState)
    optimizer = make_optimizer(MODEL, MID, 10)
    grads = gradients(9)
    warm = carry_over(optimizer.init(params), before)
    _, after = jax.jit(optimizer.update)(grads, warm, params)
    (momentum,) = found(after, MomentumState)
    for path, average in jax.tree_util.tree_leaves_with_path(of_base.momentum):
        grad: Any = grads
        for key in path:
            grad = grad[key.key]
        got: Any = momentum.momentum
        for key in path:
            got = got[key.key]
        want = 0.95 * np.asarray(average) + 0.05 * np.asarray(grad)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_what_only_the_new_chain_has_stays_fresh() -> None:
    plain = replace(MID, normuon=False)
    before, params = trained(plain, MODEL, 2)
    warm = carry_over(make_optimizer(MODEL, MID, 10).init(params), before)
    (second,) = found(warm, NorMuonState)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(second))
    assert_equal(found(warm, MomentumState)[0].momentum, found(before, MomentumState)[0].momentum)


def test_clipping_on_one_side_alone_does_not_matter() -> None:
    before, params = trained(replace(BASE, grad_clip=1.0), MODEL, 2)
    warm = carry_over(make_optimizer(MODEL, MID, 10).init(params), before)
    assert_equal(found(warm, optax.ScaleByAdamState), found(before, optax.ScaleByAdamState))
    cold = carry_over(make_optimizer(MODEL, replace(MID, grad_clip=1.0), 10).init(params), before)
    assert_equal(found(cold, optax.ScaleByAdamState), found(before, optax.ScaleByAdamState))
