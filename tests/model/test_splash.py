"""Splash attention, a TPU's kernel: interpreted on a CPU, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.config.schema import MeshConfig, ModelConfig, OptimConfig
from jaxchat.model import gpt
from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import Compute, backend
from jaxchat.model.kernels.blocked import blocked_attention
from jaxchat.model.kernels.splash import splash_attention, takes
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train.step import init_state, make_train_step

interpreted = functools.partial(splash_attention, interpret=True)


def random_qkv(time, heads, groups, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(time), 4)
    shapes = [(1, time, count, 128) for count in (heads, groups, groups, heads)]
    return [jax.random.normal(key, s).astype(dtype) for key, s in zip(keys, shapes, strict=True)]


def value_and_gradients(attention, window, q, k, v, dy):
    y, pull = jax.vjp(functools.partial(attention, window=window), q, k, v)
    return y, *pull(dy)


@pytest.mark.parametrize(
    ("time", "window", "heads", "groups"),
    [(128, 1000, 1, 1), (128, 127, 2, 1), (256, 1000, 2, 1), (256, 0, 1, 1), (256, 70, 4, 2),
     (640, 200, 2, 1)],
)  # fmt: skip
def test_splash_attention_and_its_gradients_are_those_of_blocked(time, window, heads, groups):
    """640 is no multiple of 512, so it has blocks of 128."""
    inputs = random_qkv(time, heads, groups)
    got = jax.jit(functools.partial(value_and_gradients, interpreted, window))(*inputs)
    want = jax.jit(functools.partial(value_and_gradients, blocked_attention, window))(*inputs)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_attention_in_bfloat16_is_blocked_but_for_rounding():
    inputs = random_qkv(256, 2, 1, jnp.bfloat16)
    got = jax.jit(functools.partial(value_and_gradients, interpreted, 70))(*inputs)
    exact = [x.astype(jnp.float32) for x in inputs]
    want = jax.jit(functools.partial(value_and_gradients, blocked_attention, 70))(*exact)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        assert float(jnp.linalg.norm(a.astype(jnp.float32) - b)) < 0.01 * jnp.linalg.norm(b)


@pytest.mark.parametrize(("time", "size"), [(64, 128), (200, 128), (256, 64)])
def test_shapes_that_splash_does_not_take_are_xlas(time, size):
    assert not takes(time, size)
    x = jax.random.normal(jax.random.key(0), (1, time, 1, size))
    got = causal_attention(x, x, x, window=30, implementation="splash")
    want = causal_attention(x, x, x, window=30, implementation="xla")
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("window", [200, 5000])
def test_splash_attention_lowers_for_a_tpu_with_its_three_kernels(window):
    """Forward, the gradient of queries, and that of keys and values."""
    q = jax.ShapeDtypeStruct((2, 1024, 4, 128), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 1024, 2, 128), jnp.bfloat16)

    def total(q, k, v):
        y = causal_attention(q, k, v, window=window, implementation="splash")
        return jnp.sum(y.astype(jnp.float32))

    traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 3


MODEL = ModelConfig(
    vocab_size=512, sequence_len=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=256,
    window_pattern="SL",
)  # fmt: skip


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_a_step_lowers_for_a_tpu_with_splash_attention_on_every_mesh(shape):
    """A kernel that the compiler cannot split must be within the step's shard_map."""
    compute = Compute(backend("tpu").dtype, backend("tpu").attention, backend("tpu").chunk_rows)
    assert compute.attention == "splash"
    mesh, optimizer = make_mesh(MeshConfig(*shape)), make_optimizer(MODEL, OptimConfig(), 10)
    step = make_train_step(MODEL, optimizer, mesh, compute)
    params = gpt.init_params(jax.random.key(0), MODEL)
    state = init_state(params, optimizer, mesh)
    rows = jax.ShapeDtypeStruct((1, 8, MODEL.sequence_len + 1), jnp.int32)
    batch = {"tokens": rows, "mask": rows.update(dtype=jnp.float32)}
    text = step.trace(state, batch).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") >= 3 * MODEL.n_layer
