"""Products of rounded operands against products of the same numbers in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from jaxchat.model.capabilities import BFLOAT16_FLAGS, processor_flags
from jaxchat.model.kernels.matmul import (
    count_products,
    dot,
    matmul,
    rounded_matmul,
    transposed,
    widened_matmul,
)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return normal(seed, *shape)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def assert_close(got: jax.Array, want: np.ndarray) -> None:
    """Equal but for the rounding of float32 sums; bfloat16 operands unrounded would not pass."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize("over", [(-1, -2), (-1, -1), (-2, -2)])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_every_form_is_the_product_of_rounded_operands(over: Any, stack: tuple[int, ...]) -> None:
    m, k, n = 96, 160, 64
    a = numbers(*stack, *((k, m) if over[0] == -2 else (m, k)))
    b = numbers(*stack, *((n, k) if over[1] == -1 else (k, n)), seed=1)
    got = jax.jit(lambda a, b: dot(a, b, over=over))(a, b)
    left, right = rounded(a), rounded(b)
    left = np.swapaxes(left, -1, -2) if over[0] == -2 else left
    right = np.swapaxes(right, -1, -2) if over[1] == -1 else right
    assert got.dtype == jnp.float32
    assert_close(got, left @ right)


def test_transposing_in_memory_is_transposing() -> None:
    x = numbers(2, 5, 7)
    np.testing.assert_array_equal(jax.jit(transposed)(x), np.swapaxes(x, 1, 2))


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 100, 512])
@pytest.mark.parametrize("sides", [(64, 64), (64, 256), (96, 1000), (256, 64)])
def test_forward_and_gradients_of_every_shape(rows: int, sides: tuple[int, int]) -> None:
    """XLA has no such product of some layouts, and says so only when it runs."""
    x, kernel = numbers(rows, sides[0]), numbers(*sides, seed=1)
    dy = numbers(rows, sides[1], seed=2)
    y, (dx, dkernel) = jax.jit(
        lambda x, kernel, dy: (rounded_matmul(x, kernel), jax.vjp(rounded_matmul, x, kernel)[1](dy))
    )(x, kernel, dy)
    assert_close(y, rounded(x) @ rounded(kernel))
    assert_close(dx, rounded(dy) @ rounded(kernel).T)
    assert_close(dkernel, rounded(x).T @ rounded(dy))


def test_leading_axes_are_rows() -> None:
    x, kernel = numbers(2, 3, 64), numbers(64, 128, seed=1)
    y = rounded_matmul(x, kernel)
    assert y.shape == (2, 3, 128)
    np.testing.assert_array_equal(y.reshape(6, -1), rounded_matmul(x.reshape(6, -1), kernel))


def test_small_matrices_and_plain_products_are_not_rounded() -> None:
    x, small, large = numbers(4, 64), numbers(64, 8), numbers(64, 64)
    np.testing.assert_array_equal(matmul(x, small, "bfloat16"), jnp.matmul(x, small))
    np.testing.assert_array_equal(matmul(x, large), jnp.matmul(x, large))
    assert np.any(matmul(x, large, "bfloat16") != jnp.matmul(x, large))


@pytest.mark.parametrize(
    ("sides", "precision", "narrow"),
    [
        ((96, 128), "bfloat16", True),
        ((96, 128), "default", False),
        ((96, 32), "bfloat16", False),  # smaller than is worth it
        ((96, 128), "fp8", False),  # what the logits are computed with never is
    ],
)
def test_of_widened_products_only_large_ones_are_rounded_and_on_request(
    sides: tuple[int, int], precision: Any, narrow: bool
) -> None:
    x, kernel = numbers(5, sides[0]), numbers(*sides, seed=1)
    got = widened_matmul(x, kernel, precision)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert_close(got, rounded(x) @ rounded(kernel) if narrow else exact)


def test_widened_products_of_narrow_activations_are_float32() -> None:
    x, kernel = numbers(5, 96).astype(jnp.bfloat16), numbers(96, 128, seed=1)
    got = widened_matmul(x, kernel)
    assert got.dtype == jnp.float32
    assert_close(got, rounded(x) @ rounded(kernel))


def test_a_weights_gradient_is_summed_in_float32() -> None:
    """In bfloat16 it would be rounded, once in every micro-batch."""
    x, kernel = numbers(3, 50, 64).astype(jnp.bfloat16), numbers(64, 32, seed=1)
    dy = numbers(3, 50, 32, seed=2).astype(jnp.bfloat16)
    y, back = jax.vjp(jax.jit(matmul), x, kernel)
    dx, dkernel = back(dy)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    rows, grads = rounded(x).reshape(150, 64), rounded(dy).reshape(150, 32)
    assert_close(dkernel, rows.T @ grads)
    y, dx = (np.asarray(a, np.float32) for a in (y, dx))
    np.testing.assert_allclose(y, rounded(x) @ rounded(kernel), rtol=5e-3, atol=1e-2)
    np.testing.assert_allclose(dx, rounded(dy) @ rounded(kernel).T, rtol=5e-3, atol=1e-2)


@pytest.mark.skipif(
    not processor_flags() & BFLOAT16_FLAGS, reason="this processor is not made for bfloat16"
)
def test_a_layers_products_are_compiled_to_products_of_bfloat16() -> None:
    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(rounded_matmul(x, kernel)))

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(x @ kernel))

    def program(function: Any) -> str:
        gradient = jax.jit(jax.grad(function, (0, 1)))
        return str(gradient.lower(numbers(256, 128), numbers(128, 512)).compile().as_text())

    assert count_products(program(total)) == 3
    assert count_products(program(plain)) == 0


def test_a_product_is_counted_where_both_operands_are_narrow() -> None:
    text = """
%one (a: bf16[2,2], b: bf16[2,2]) -> f32[2,2] {
  %a = bf16[2,2]{1,0} parameter(0)
  %b = bf16[2,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[2,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%two (a: f32[2,2], b: bf16[2,2]) -> f32[2,2] {
  %a = f32[2,2]{1,0} parameter(0)
  %b = bf16[2,2]{1,0} parameter(1)
  %c = f32[2,2]{1,0} convert(%b)
  ROOT %dot.2 = f32[2,2]{1,0} dot(%a, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    assert count_products(text) == 1
