"""The whole optimizer against a float64 reference in NumPy, group by group."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from muon_reference import AdamW, ModernMuon, PlainMuon

from jaxchat.config.derive import derive_horizon, derive_model
from jaxchat.config.schema import ModelConfig, OptimConfig
from jaxchat.model import gpt
from jaxchat.optim import schedule
from jaxchat.optim.optimizer import make_optimizer, muon_chain

STEPS = 12
CLASSIC = OptimConfig(momentum_warmup_steps=4, warmdown_ratio=0.5, grad_clip=0.0)
MODERN = replace(
    derive_horizon(derive_model(12, "modern", 300), "modern", 12.0).optim,
    warmup_steps=3, momentum_warmup_steps=5,
)  # fmt: skip
# [in, out]: tall, wide, square, one column, and the gate of a value embedding
SHAPES = [(12, 5), (5, 12), (8, 8), (6, 1), (12, 2)]


def run(
    optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]
) -> tuple[Any, Any]:
    """The parameters after all gradients, and the state."""

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for grads in gradients:
        params, state = step(params, state, grads)
    return params, state


def random_tree(shapes: dict[str, tuple[int, ...]], seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(scale * rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def random_like(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


def rate_of(config: OptimConfig, step: int) -> float:
    return float(schedule.rate_multiplier(config, STEPS)(jnp.asarray(step)))


def momentum_of(config: OptimConfig, step: int) -> float:
    return float(schedule.momentum(config, STEPS)(jnp.asarray(step)))


def decay_of(config: OptimConfig, step: int) -> float:
    return float(schedule.decay(config, STEPS)(jnp.asarray(step)))


def matrices_step_like(
    config: OptimConfig, reference: type[PlainMuon], shapes: list[tuple[int, int]]
) -> None:
    """Matrices of every shape at once, over several steps with all schedules moving."""
    model = ModelConfig(vocab_size=300, sequence_len=16, n_layer=2, n_head=2, n_kv_head=2, n_embd=8)
    names = {f"h_{i}/x": shape for i, shape in enumerate(shapes)}
    # two of the first shape, which are stacked and must not mix
    names["h_9/x"] = shapes[0]

    def nest(flat: Any) -> Any:
        return {name.split("/")[0]: {"kernel": leaf} for name, leaf in flat.items()}

    params = nest(random_tree(names, 0, 0.1))
    gradients = [nest(random_tree(names, 1 + step, 10.0**-step)) for step in range(STEPS)]
    got, _ = run(make_optimizer(model, config, STEPS, lr_scale=0.5), params, gradients)

    for name, leaf in got.items():
        oracle = reference(np.asarray(params[name]["kernel"]).T)
        for step, grads in enumerate(gradients):
            oracle.step(
                np.asarray(grads[name]["kernel"]).T,
                0.5 * config.matrix_lr * rate_of(config, step),
                momentum_of(config, step),
                decay_of(config, step),
            )
        moved = np.abs(oracle.w.T - params[name]["kernel"]).max()
        assert moved > 0.02, f"{name} hardly moved, the test shows nothing"
        np.testing.assert_allclose(
            leaf["kernel"], oracle.w.T, atol=2e-5, err_msg=f"{name} {leaf['kernel'].shape}"
        )


@pytest.mark.usefixtures("optax_promotion")
def test_the_classic_chain_equals_plain_muon() -> None:
    matrices_step_like(CLASSIC, PlainMuon, SHAPES)


@pytest.mark.usefixtures("optax_promotion")
def test_the_classic_chain_decays_every_parameter_when_asked() -> None:
    matrices_step_like(replace(CLASSIC, weight_decay=0.5), PlainMuon, SHAPES)


@pytest.mark.usefixtures("optax_promotion")
def test_the_modern_chain_equals_the_reference() -> None:
    matrices_step_like(replace(MODERN, weight_decay=2.0), ModernMuon, SHAPES)


def test_muon_in_bfloat16_is_near_muon_in_float32() -> None:
    params = random_tree({"x": (16, 32)}, 0)
    grads = random_tree({"x": (16, 32)}, 1)
    config = replace(MODERN, weight_decay=0.0)  # a cautious decay may differ by all of itself
    exact, rough = (
        run(muon_chain(config, STEPS, dtype), params, [grads])[0]["x"] - params["x"]
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rough.dtype == jnp.float32
    assert 0 < np.linalg.norm(exact - rough) < 0.1 * np.linalg.norm(exact)


def test_a_zero_gradient_moves_nothing_and_is_no_nan() -> None:
    params = random_tree({"x": (4, 6)}, 0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for config in (CLASSIC, replace(MODERN, weight_decay=0.0)):
        got, _ = run(muon_chain(config, STEPS), params, [zeros, zeros])
        np.testing.assert_array_equal(got["x"], params["x"])


ADAM_GROUPS = {
    # path: (rate, beta1, beta2, decay) for (classic, modern); D = 192, so (D / 768) ** -0.5 = 2
    ("lm_head", "kernel"): ((2 * 0.004, 0.8, 0.95, 0.0), (2 * 0.008, 0.8, 0.96, 0.01)),
    ("wte", "embedding"): ((2 * 0.2, 0.8, 0.95, 0.0), (2 * 0.3, 0.8, 0.995, 0.001)),
    ("value_embeds_1", "embedding"): (None, (2 * 0.3 * 0.5, 0.8, 0.995, 0.01)),
    ("resid_lambdas",): (None, (0.5 * 0.01, 0.8, 0.95, 0.05)),
    ("x0_lambdas",): (None, (0.5, 0.96, 0.95, 0.0)),
    ("smear_gate", "kernel"): (None, (0.2, 0.8, 0.95, 0.0)),
    ("smear_lambda",): (None, (0.2, 0.8, 0.95, 0.0)),
    ("backout_lambda",): (None, (0.2, 0.8, 0.95, 0.0)),
}


def at(tree: Any, path: tuple[str, ...]) -> np.ndarray:
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("preset", ["classic", "modern"])
def test_adam_groups_have_their_own_rates_betas_and_decays(preset: str) -> None:
    model = derive_model(2, preset, 40, sequence_len=16)
    model = replace(model, n_embd=192, n_head=2, n_kv_head=2)
    config = CLASSIC if preset == "classic" else MODERN
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    shapes = {name: tree for name, tree in shapes.items() if not name.startswith("h_")}
    params, *gradients = (random_like(shapes, seed) for seed in range(5))
    got, _ = run(make_optimizer(model, config, STEPS), params, gradients)
    for path, groups in ADAM_GROUPS.items():
        settings = groups[preset == "modern"]
        if settings is None:
            assert path[0] not in params
            continue
        rate, *rest = settings
        oracle = AdamW(at(params, path), *rest)
        for step, grads in enumerate(gradients):
            oracle.step(at(grads, path), rate * rate_of(config, step))
        np.testing.assert_allclose(
            at(got, path), oracle.w, rtol=1e-4, atol=1e-5, err_msg="/".join(path)
        )


@pytest.mark.usefixtures("optax_promotion")
def test_gradients_are_clipped_by_their_global_norm() -> None:
    model = ModelConfig(vocab_size=300, sequence_len=16, n_layer=1, n_head=2, n_kv_head=2, n_embd=8)
    shapes = {"wte": (30, 8), "lm_head": (8, 30)}
    params = {k: {"w": v} for k, v in random_tree(shapes, 0).items()}
    grads = {k: {"w": v} for k, v in random_tree(shapes, 1, 100.0).items()}
    clipped = make_optimizer(model, replace(CLASSIC, grad_clip=1.0), STEPS)
    _, state = run(clipped, params, [grads])
    norm = float(optax.tree.norm(grads))
    for group, name in (("embedding", "wte"), ("head", "lm_head")):
        adam = state[1].inner_states[group].inner_state[0]
        np.testing.assert_allclose(
            adam.mu[name]["w"], 0.2 * grads[name]["w"] / norm, rtol=1e-4, err_msg=name
        )
