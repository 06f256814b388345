"""Losses against the plain formula, differentiated automatically."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import distance, norm, normal

from jaxchat.model.backend import Compute
from jaxchat.model.loss import bits_per_byte, cross_entropy, token_logprobs

SOFTCAP = 15.0
B, T, D, V = 3, 10, 8, 33


def make_batch(seed=0, time=T):
    rng = np.random.default_rng(seed)
    x = normal(rng, B, time, D)
    kernel = 3 * normal(rng, D, V)  # large, so that the cap bends the logits
    targets = rng.integers(0, V, (B, time), np.int32)
    mask = (rng.random((B, time)) < 0.6).astype(np.float32)
    weights = normal(rng, B, time)
    return x, kernel, targets, mask, weights


def plain_logprobs(x, kernel, targets):
    logits = SOFTCAP * jnp.tanh((x @ kernel) / SOFTCAP)
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]


def plain_loss(x, kernel, targets, factor):
    return -jnp.sum(factor * plain_logprobs(x, kernel, targets))


@pytest.mark.parametrize("chunk_rows", [1, 4, 9, 12, 30, 1000])
def test_value_and_gradients_are_those_of_the_plain_loss(chunk_rows):
    x, kernel, targets, mask, weights = make_batch()

    def chunked(x, kernel):
        total, _ = cross_entropy(
            x,
            kernel,
            targets,
            mask,
            softcap=SOFTCAP,
            weights=weights,
            compute=Compute(chunk_rows=chunk_rows),
        )
        return 0.37 * total  # a cotangent that is not 1

    def plain(x, kernel):
        return 0.37 * plain_loss(x, kernel, targets, mask * weights)

    got, got_grads = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(x, kernel)
    want, want_grads = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
    alone = jax.jit(chunked)(x, kernel)  # without differentiation
    np.testing.assert_allclose(alone, want, rtol=1e-5)


@pytest.mark.parametrize("chunk_rows", [4, 1000])
def test_rounded_products_give_the_value_and_gradients_of_rounded_operands(chunk_rows):
    x, kernel, targets, mask, weights = make_batch()
    near = [a.astype(jnp.bfloat16).astype(np.float32) for a in (x, kernel)]

    @functools.partial(jax.jit, static_argnums=0)
    def run(matmul, x, kernel):
        def loss(x, kernel):
            return cross_entropy(
                x, kernel, targets, mask, softcap=SOFTCAP, weights=weights,
                compute=Compute(chunk_rows=chunk_rows, matmul=matmul),
            )[0]  # fmt: skip

        return jax.value_and_grad(loss, argnums=(0, 1))(x, kernel), loss(x, kernel)

    (got, got_grads), alone = run("bfloat16", x, kernel)
    (want, want_grads), _ = run("default", *near)
    np.testing.assert_allclose([got, alone], want, rtol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):  # those of logits are rounded, too
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=8e-3 * np.abs(b).max())


def test_negative_weights_turn_the_gradient_round():
    x, kernel, targets, mask, weights = make_batch()

    def grad(sign):
        def loss(x):
            return cross_entropy(
                x, kernel, targets, mask, softcap=SOFTCAP, weights=sign * np.abs(weights)
            )[0]

        return np.asarray(jax.jit(jax.grad(loss))(x))

    assert grad(1.0).any()
    np.testing.assert_allclose(grad(-1.0), -grad(1.0))


def test_weight_is_the_mask_whatever_the_weights_are():
    x, kernel, targets, mask, weights = make_batch()
    _, weight = cross_entropy(x, kernel, targets, mask, softcap=SOFTCAP, weights=weights)
    assert float(weight) == float(mask.sum())


def test_an_empty_mask_gives_zero_and_finite_gradients():
    x, kernel, targets, mask, _ = make_batch()

    def loss(x, kernel):
        total, weight = cross_entropy(x, kernel, targets, 0 * mask, softcap=SOFTCAP)
        return total / jnp.maximum(weight, 1.0)

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)
    assert value == 0
    assert not any(map(np.any, grads))


def test_parts_of_a_batch_add_up_to_the_whole():
    x, kernel, targets, mask, _ = make_batch()
    whole = cross_entropy(x, kernel, targets, mask, softcap=SOFTCAP)
    parts = [
        cross_entropy(x[i : i + 1], kernel, targets[i : i + 1], mask[i : i + 1], softcap=SOFTCAP)
        for i in range(B)
    ]
    for got, want in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_extreme_logits_stay_finite():
    x, kernel, targets, mask, _ = make_batch()
    value, grads = jax.jit(
        jax.value_and_grad(lambda k: cross_entropy(x, k, targets, mask, softcap=SOFTCAP)[0])
    )(np.float32(1e6) * kernel)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_half_precision_features_give_half_precision_gradients_near_the_exact_ones():
    x, kernel, targets, mask, _ = make_batch()

    def grads(x):
        def loss(x, k):
            return cross_entropy(x, k, targets, mask, softcap=SOFTCAP)[0]

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel)

    half, exact = grads(x.astype(jnp.bfloat16)), grads(x)
    assert half[0].dtype == jnp.bfloat16
    assert half[1].dtype == jnp.float32
    for a, b in zip(half, exact, strict=True):
        assert distance(a, b) < 0.05 * norm(b)


@pytest.mark.parametrize("chunk_rows", [4, 30])
def test_token_logprobs_are_the_plain_ones(chunk_rows):
    x, kernel, targets, _, _ = make_batch()
    got = token_logprobs(x, kernel, targets, softcap=SOFTCAP, chunk_rows=chunk_rows)
    np.testing.assert_allclose(got, plain_logprobs(x, kernel, targets), atol=1e-5)


@pytest.mark.parametrize(
    ("chunk_rows", "chunks"), [(1, 10), (3, 10), (9, 4), (12, 3), (29, 2), (30, 1), (1000, 1)]
)
def test_a_chunk_has_at_most_its_rows_and_there_are_no_more_than_needed(chunk_rows, chunks):
    """Rows are of all B sequences at once; more chunks would be slower, larger ones need memory."""
    x, kernel, targets, mask, _ = make_batch()

    def logprobs(x):
        return token_logprobs(x, kernel, targets, softcap=SOFTCAP, chunk_rows=chunk_rows)

    def loss(x):
        compute = Compute(chunk_rows=chunk_rows)
        return cross_entropy(x, kernel, targets, mask, softcap=SOFTCAP, compute=compute)[0]

    for function in (logprobs, loss, jax.grad(loss)):
        assert f" length={chunks}\n" in str(jax.make_jaxpr(function)(x)), function


def test_bits_per_byte_are_nats_over_bytes_and_nan_without_bytes():
    assert bits_per_byte(3.0, 5.0) == pytest.approx(3.0 / 5.0 / math.log(2.0))
    with pytest.raises(ValueError, match="no byte"):
        bits_per_byte(0.0, 0.0)
