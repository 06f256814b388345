"""Products with kernels of 8 bits: XLA's call of our own, the formula in JAX, and NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.model.kernels import int8
from jaxchat.model.kernels.matmul import matmul, widened_matmul

# rows, width and columns: fewer than a panel, odd, more than a block of sums, shared by threads
SHAPES = [(1, 2, 1), (3, 64, 40), (5, 63, 65), (13, 3000, 33), (8, 256, 2048), (64, 128, 16)]
quantize, multiply = jax.jit(int8.quantize), jax.jit(int8.matmul)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def operands(shape, seed=0):
    rows, width, columns = shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    kernel = rng.standard_normal((width, columns)).astype(np.float32)
    return x, kernel


def reference(x, held):
    """Integers of a row times those of a column, exactly; then float32's steps in their order."""
    values = np.asarray(jax.jit(int8._matrix)(*held), np.int64)[: x.shape[1]]
    scale = np.asarray(held.scale)
    largest, most = np.abs(x).max(axis=1, keepdims=True), np.float32(16_256)
    sums = np.round(x * (most / largest)).astype(np.int64) @ values
    total = (sums >> 7).astype(np.float32) * np.float32(128) + (sums & 127).astype(np.float32)
    return total * (largest * (1 / most)) * scale


@every_shape
def test_the_product_is_numpys_to_the_bit(shape):
    x, kernel = operands(shape)
    held = quantize(kernel)
    found = multiply(x, held)
    np.testing.assert_array_equal(found, reference(x, held))
    np.testing.assert_allclose(held.scale, np.abs(kernel).max(axis=0) / 127, rtol=1e-6)


@every_shape
def test_the_formula_in_jax_is_the_same_to_the_bit(shape):
    x, kernel = operands(shape, seed=1)
    held = quantize(kernel)
    plain = jax.jit(int8.plain_matmul)(np.pad(x, ((0, 0), (0, x.shape[1] % 2))), *held)
    np.testing.assert_array_equal(multiply(x, held), plain)


@every_shape
def test_it_is_near_the_product_of_what_the_kernel_stands_for(shape):
    x, kernel = operands(shape, seed=2)
    held = quantize(kernel)
    matrix = np.asarray(jax.jit(int8.dequantize)(held), np.float64)[: x.shape[1]]
    error = np.abs(np.asarray(multiply(x, held)) - x @ matrix)
    assert error.max() <= 1e-4 * np.abs(x).max() * np.abs(matrix).sum(axis=0).max()
    np.testing.assert_allclose(matrix, kernel, atol=np.abs(kernel).max() / 253)


def test_a_row_gets_the_same_in_any_company():
    x, kernel = operands((17, 128, 300))
    held = quantize(kernel)
    together = multiply(x, held)
    for count in (1, 2, 4, 8, 15):
        np.testing.assert_array_equal(multiply(x[:count], held), together[:count])


def test_zeros_stay_zeros():
    x, kernel = operands((2, 64, 64))
    x[0], kernel[:, 3] = 0, 0
    found = np.asarray(multiply(x, quantize(kernel)))
    assert not found[0].any()
    assert not found[:, 3].any()
    assert found[1, :3].all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    x, kernel = operands((2, 64, 64))
    x[0, 5] = bad
    found = np.asarray(multiply(x, quantize(kernel)))
    assert not np.isfinite(found[0]).any()
    assert np.isfinite(found[1]).all()


def test_axes_before_the_last_are_rows():
    x, kernel = operands((6, 64, 70))
    held = quantize(kernel)
    expected = multiply(x, held)
    for product in (matmul, widened_matmul):
        found = product(jnp.asarray(x).reshape(2, 3, 64), held)
        np.testing.assert_array_equal(found, expected.reshape(2, 3, 70))


def test_only_large_kernels_are_held_in_8_bits():
    kernel = jnp.ones((64, 64))
    params = {
        "h_0": {"c_q": {"kernel": kernel}, "ve_gate": {"kernel": jnp.ones((12, 64))}},
        "wte": {"embedding": kernel},
    }
    held = int8.quantize_kernels(params)
    assert isinstance(held["h_0"]["c_q"]["kernel"], int8.Kernel)
    assert held["h_0"]["ve_gate"]["kernel"].dtype == held["wte"]["embedding"].dtype == jnp.float32
    assert held["h_0"]["c_q"]["kernel"].panels.nbytes * 4 == kernel.nbytes


def test_wrong_operands_are_an_error():
    x, kernel = operands((2, 64, 64))
    held = quantize(kernel)
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxchat_int8_matmul takes float32"):
        jax.block_until_ready(jax.jit(int8._called)(x[:, :32], *held))
