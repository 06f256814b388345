"""The forms that move fewer bytes on a GPU, against the plain ones that they stand for."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import distance, norm, normal
from model_variants import CLASSIC, MODERN, lively_params

from jaxchat.config.schema import ComputeConfig, MeshConfig, ModelConfig, OptimConfig
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS, PLAIN, Compute, backend
from jaxchat.model.capabilities import choose_compute, inference_compute
from jaxchat.model.kernels import norms, residual
from jaxchat.model.kernels.relu2 import relu2
from jaxchat.model.loss import cross_entropy
from jaxchat.model.rope import rotary
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.train.step import init_state, loss_and_grads, make_train_step

FUSED = Compute(fused=True)
SHAPES = {
    "classic": CLASSIC,
    "modern": MODERN,
    "odd": dataclasses.replace(MODERN, n_embd=42, n_head=3, n_kv_head=1, vocab_size=67),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
gradients = jax.jit(loss_and_grads, static_argnames=("model", "compute"))


def make_batch(config: ModelConfig, time: int = 150, seed: int = 0) -> dict[str, Any]:
    """Two micro-batches of two rows, with a mask of any weights and advantages of both signs."""
    rng = np.random.default_rng(seed)
    shape = (2, 2, time + 1)
    return {
        "tokens": rng.integers(0, config.vocab_size, shape, np.int32),
        "mask": rng.random(shape, np.float32) * (rng.random(shape) < 0.7),
        "advantage": np.array([[1.0, -0.4], [0.3, 2.0]], np.float32),
    }


def weights_of(config: ModelConfig, seed: int = 0) -> Any:
    """As a model begins, and all moved a little: no tensor's gradient is zero or mostly cancels."""
    begun = gpt.init_params(jax.random.key(seed), config)
    tenth = np.float32(0.1)
    return jax.tree.map(
        lambda x, y: np.asarray(x) + tenth * (y - tenth), begun, lively_params(config, seed)
    )


def distances_of(got: Any, want: Any, axes: int = 2) -> list[float]:
    """The root mean square difference of each tensor of `axes` axes, relative to its root mean
    square.
    """
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return [distance(a, b) / norm(b) for a, b in pairs if b.ndim == axes]


def relative(got: Any, want: Any) -> dict[str, float]:
    """Path -> the largest difference, relative to the largest value."""
    paths = jax.tree_util.tree_leaves_with_path(want)
    pairs = zip(map(np.asarray, jax.tree.leaves(got)), paths, strict=True)
    return {
        jax.tree_util.keystr(path): float(np.abs(a - b).max() / np.abs(b).max())
        for a, (path, b) in pairs
    }


@every_shape
def test_loss_and_gradients_in_float32_are_those_of_the_plain_forms(config: ModelConfig) -> None:
    params, batch = weights_of(config), make_batch(config)
    want, want_loss, _ = gradients(params, batch, config, PLAIN)
    got, got_loss, _ = gradients(params, batch, config, FUSED)
    np.testing.assert_allclose(got_loss, want_loss, rtol=1e-6)
    for name, difference in relative(got, want).items():
        limit = 1e-4 if "lambda" in name else 2e-6
        assert difference <= limit, f"{name}: {difference}"


@every_shape
def test_bfloat16_is_as_near_to_float32_as_the_plain_forms_are(config: ModelConfig) -> None:
    """Over three models, as one alone is mostly luck."""
    matrices: dict[bool, list[float]] = {False: [], True: []}
    scalars: dict[bool, list[float]] = {False: [], True: []}  # of the residual stream
    for seed in range(3):
        params, batch = weights_of(config, seed), make_batch(config, seed=seed)
        want, want_loss, _ = gradients(params, batch, config, PLAIN)
        for fused in matrices:
            compute = Compute(dtype=jnp.bfloat16, fused=fused)
            got, loss, _ = gradients(params, batch, config, compute)
            np.testing.assert_allclose(loss, want_loss, rtol=1e-3)
            matrices[fused] += distances_of(got, want)
            scalars[fused] += distances_of(got, want, 0) + distances_of(got, want, 1)
    plain, fused = (float(np.sqrt(np.mean(np.square(found)))) for found in matrices.values())
    assert fused <= plain, f"{fused} where the plain forms are {plain} from float32"
    if scalars[True]:
        plain, fused = (float(np.sqrt(np.mean(np.square(found)))) for found in scalars.values())
        assert fused <= plain, f"scalars: {fused} where the plain forms are {plain} from float32"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 1, 1, 2), (2, 4, 2, 128)])
@pytest.mark.parametrize("batched", [False, True])
def test_norm_and_rotation_are_the_plain_ones(
    dtype: Any, shape: tuple[int, ...], batched: bool
) -> None:
    """Alone, under `vmap` and in a loop; positions shared by the rows or of each its own."""
    rng = np.random.default_rng(0)
    x, dy = (normal(rng, *shape).astype(dtype) for _ in range(2))
    positions = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape[:2])
    positions = positions if batched else positions[:1]
    rope = jax.jit(lambda at: rotary(at, shape[-1], 1e4, jnp.float32))(positions)
    config = ModelConfig(qk_scale=1.2)

    def run(compute: Compute, x: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
        # A barrier, as the plain form in bfloat16 would otherwise be computed in float32, or not
        table = tuple(a.astype(dtype) for a in rope)
        y, back = jax.vjp(lambda x: gpt.norm_rotated(x, table, config, compute), x.astype(dtype))
        return y, back(dy.astype(dtype))[0]

    def alone(x: Any) -> Any:
        return run(FUSED, x, dtype)

    want = jax.jit(lambda x: run(PLAIN, x, jnp.float32))(x)
    limit = 1e-6 if dtype == jnp.float32 else 1e-2
    for got in (
        jax.jit(alone)(x),
        jax.jit(jax.vmap(alone))(x[None]),
        jax.jit(lambda xs: jax.lax.scan(lambda _, x: (None, alone(x)), None, xs)[1])(x[None]),
    ):
        for a, b in zip(got, want, strict=True):
            assert a.dtype == dtype
            wide, exact = np.asarray(a, np.float32).reshape(b.shape), np.asarray(b)
            np.testing.assert_allclose(wide, exact, rtol=0, atol=limit * np.abs(exact).max())


@pytest.mark.parametrize("factor", [1.0, -0.7, 0.0])
def test_the_loss_of_rounded_logits_is_near_the_exact_one(factor: float) -> None:
    """Rows of few and of many positions, masked, with advantages, in several chunks."""
    rng = np.random.default_rng(1)
    x = normal(rng, 3, 40, 64).astype(jnp.bfloat16)
    kernel = normal(rng, 64, 129).astype(jnp.bfloat16).astype(np.float32)
    targets = rng.integers(0, 129, (3, 40), np.int32)
    mask = (rng.random((3, 40)) < 0.6).astype(np.float32)
    advantage = np.broadcast_to(np.array([[1], [-2], [0.5]], np.float32), mask.shape) * factor

    @functools.partial(jax.jit, static_argnames="compute")
    def run(x: jax.Array, kernel: jax.Array, compute: Compute) -> tuple[Any, Any]:
        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return cross_entropy(
                x, kernel, targets, mask, softcap=15.0, weights=advantage, compute=compute
            )[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel)

    want, exact = run(x.astype(np.float32), kernel, Compute(chunk_rows=24))
    errors = []
    for fused in (False, True):
        got, grads = run(x, kernel, Compute(jnp.bfloat16, chunk_rows=24, fused=fused))
        np.testing.assert_allclose(got, want, rtol=3e-3, atol=1e-6)
        assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32]
        wide = [np.asarray(grad, np.float32) for grad in grads]
        if factor == 0.0:
            assert not any(map(np.any, wide))
        else:
            errors.append(distances_of(wide, exact))
    for plain, fused_error in zip(*errors, strict=True) if errors else ():
        assert fused_error < max(1.5 * plain, 8e-3)


def test_rounded_logits_beyond_every_cap_stay_finite() -> None:
    x = np.full((1, 4, 8), 1e4, jnp.bfloat16)
    kernel = np.repeat(np.array([[1e4, -1e4]], np.float32), 3, axis=1).repeat(8, axis=0)
    compute = Compute(jnp.bfloat16, fused=True)
    targets, mask = np.array([[0, 5, 1, 3]], np.int32), np.ones((1, 4), np.float32)

    def loss(x: jax.Array) -> jax.Array:
        return cross_entropy(x, kernel, targets, mask, softcap=15.0, compute=compute)[0]

    value, grad = jax.jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(value, 4 * math.log(3) + 2 * 30, rtol=1e-5)
    assert not np.any(grad)  # tanh is flat there


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_a_step_over_a_mesh_is_the_step_of_one_device(mesh: tuple[int, int, int]) -> None:
    config = dataclasses.replace(MODERN, n_layer=2)

    def losses(compute: Compute, shape: tuple[int, int, int]) -> list[float]:
        devices = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
        optimizer = make_optimizer(config, OptimConfig(), 10)
        step = make_train_step(config, optimizer, devices, compute)
        state, found = init_state(weights_of(config), optimizer, devices), []
        tokens = make_batch(config, time=20)["tokens"].repeat(4, axis=1)
        batch = {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}
        for _ in range(3):
            state, metrics = step(state, put_batch(devices, batch))
            found.append(float(metrics["loss"]))
        return found

    one = losses(PLAIN, (1, 1, 1))
    np.testing.assert_allclose(losses(FUSED, mesh), one, rtol=1e-5)
    half = dataclasses.replace(FUSED, dtype=jnp.bfloat16)
    np.testing.assert_allclose(losses(half, mesh), one, rtol=2e-2)


@pytest.mark.parametrize("matmul", ["default", "fp8"])
def test_gradients_lower_for_a_gpu_and_every_norm_rotation_and_loss_is_fused(matmul: Any) -> None:
    """Which has barriers of its own in what a GPU gets, traced on any machine."""
    config = dataclasses.replace(MODERN, n_embd=128, n_head=1, n_kv_head=1)
    params, batch = gpt.param_shapes(config), jax.eval_shape(lambda: make_batch(config))

    def barriers(fused: bool) -> int:
        compute = Compute(jnp.bfloat16, "blocked", matmul=matmul, fused=fused)
        traced = gradients.trace(params, batch, config, compute)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return int(text.count("stablehlo.optimization_barrier"))

    residual, rotated = 2 + 2 * config.n_layer, 2 * config.n_layer
    mixed = 2 * (config.n_layer + 1) + 2  # and what the layers begin with
    rounded = 6 * config.n_layer if matmul == "fp8" else 0
    assert barriers(False) == 1  # the table of rotations
    assert barriers(True) == residual + (1 + 2) * rotated + 3 + mixed + rounded


def test_kernels_are_rounded_once_for_all_micro_batches() -> None:
    """Outside the loop over them, and to the same gradients as one after the other."""
    config = dataclasses.replace(MODERN, n_embd=64, n_head=2, n_kv_head=2)
    params, batch = weights_of(config), make_batch(config)
    compute = Compute(jnp.bfloat16, fused=True)
    text = gradients.lower(params, batch, config, compute).as_text()
    rounding = "(tensor<64x256xf32>) -> tensor<64x256xbf16>"
    assert text.count(rounding) == config.n_layer
    assert text.split("stablehlo.while")[0].count(rounding) == config.n_layer

    def grads(start: int, stop: int) -> Any:
        micro_batches = jax.tree.map(lambda x: x[start:stop], batch)
        return gradients(params, micro_batches, config, compute)[0]

    each = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), grads(0, 1), grads(1, 2))
    for name, difference in relative(grads(0, 2), each).items():
        assert difference <= 2e-6, f"{name}: {difference}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu2_keeps_its_result_alone_and_has_the_gradient_of_the_plain_one(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, grad = ((3 * normal(rng, 2, 5, 64)).astype(dtype) for _ in range(2))
    x[0, 0] = 0
    want, pull_plain = jax.vjp(jax.jit(lambda x: jnp.square(jax.nn.relu(x))), x)
    got, pull = jax.vjp(relu2, x)
    np.testing.assert_array_equal(got, want)
    (kept,) = jax.tree.leaves(pull)
    np.testing.assert_array_equal(kept, got)
    wide = [np.asarray(f(grad)[0], np.float32) for f in (pull, pull_plain)]
    np.testing.assert_allclose(*wide, rtol=1e-6 if dtype == jnp.float32 else 2.0**-7)


@every_shape
def test_a_model_that_keeps_less_has_the_gradients_of_the_plain_one(config: ModelConfig) -> None:
    params, batch = weights_of(config), make_batch(config)
    want, _, _ = gradients(params, batch, config, PLAIN)
    got, _, _ = gradients(params, batch, config, Compute(lean_relu2=True))
    for name, difference in relative(got, want).items():
        assert difference <= 2e-6, f"{name}: {difference}"
    plain, lean = (
        distances_of(gradients(params, batch, config, compute)[0], want)
        for compute in (
            Compute(jnp.bfloat16, fused=True),
            Compute(jnp.bfloat16, fused=True, lean_relu2=True),
        )
    )
    assert np.linalg.norm(lean) <= 1.1 * np.linalg.norm(plain)


def test_only_a_gpu_takes_the_fused_forms_and_only_for_training() -> None:
    assert {name: row.fused for name, row in BACKENDS.items()} == {
        "cpu": False, "gpu": True, "tpu": False,
    }  # fmt: skip
    assert not choose_compute(ComputeConfig(), CLASSIC).fused
    gpu = choose_compute(ComputeConfig(), CLASSIC, jnp.float32, on=backend("gpu"))
    assert gpu.fused
    assert not gpu.unrounded().fused
    assert not inference_compute(ComputeConfig(), CLASSIC).fused


def test_plain_computation_has_one_barrier_around_the_table_of_rotations() -> None:
    params, batch = gpt.param_shapes(MODERN), jax.eval_shape(lambda: make_batch(MODERN))
    text = gradients.lower(params, batch, MODERN, PLAIN).as_text()
    [barrier] = re.findall(r"stablehlo.optimization_barrier.*", text)
    assert re.search(rf": (tensor<1x\d+x1x{MODERN.head_dim // 2}xf32>), \1$", barrier)


def test_a_norm_keeps_its_input_alone() -> None:
    x = jnp.ones((4, 8), jnp.bfloat16)
    _, back = jax.vjp(lambda x: norms.rms_norm(x, 1e-6), x)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(back)] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_weighted_sum_has_the_gradients_of_the_plain_one(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, y, grad = (normal(rng, 2, 5, 64).astype(dtype) for _ in range(3))
    a, b = np.float32(0.9), np.float32(-0.3)

    def plain(x: jax.Array, y: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return a * x.astype(jnp.float32) + b * y.astype(jnp.float32)

    want, pull_plain = jax.vjp(jax.jit(plain), x, y, a, b)
    got, pull = jax.vjp(jax.jit(residual.mix), x, y, a, b)
    found = (got, *pull(grad))
    assert [one.dtype for one in found] == [dtype, dtype, dtype, jnp.float32, jnp.float32]
    for one, exact in zip(found, (want, *pull_plain(grad.astype(np.float32))), strict=True):
        limit = 1e-6 if one.dtype == jnp.float32 else 2.0**-8
        wide, near = (np.asarray(each, np.float32) for each in (one, exact))
        np.testing.assert_allclose(wide, near, rtol=limit, atol=limit)
