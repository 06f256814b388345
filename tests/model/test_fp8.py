"""Products in 8-bit floats, against NumPy in float64 and a rounding written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.model.kernels import fp8
from jaxchat.model.kernels.matmul import count_products

# fraction bits, exponent of the smallest normal number, largest value
E4M3 = (3, -6, 448.0)
E5M2 = (2, -14, 57344.0)


def rounded(x, kind):
    """To the nearest number of `bits` bits of fraction (ties to even), after scaling by the largest
    power of two with which the tensor fits; scaled back. In float64."""
    bits, smallest, largest = kind
    x = np.asarray(x, np.float64)
    scale = 2.0 ** np.floor(np.log2(largest / np.abs(x).max()))
    exponent = np.floor(np.log2(np.maximum(np.abs(x * scale), 2.0**-100)))
    unit = 2.0 ** (np.maximum(exponent, smallest) - bits)
    return np.rint(x * scale / unit) * unit / scale


def draw(shape, seed, spread=1.0, dtype=jnp.float32):
    """Values over many orders of magnitude, so that the small ones are subnormal in 8 bits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize("size", [1.0, 3e-12, 7e7, 448.0, 2.0**-20])
def test_quantized_values_are_the_nearest(size):
    x = draw((300,), 0, spread=3.0)
    x = x / jnp.max(jnp.abs(x)) * jnp.float32(size)
    for dtype, kind in ((jnp.float8_e4m3fn, E4M3), (jnp.float8_e5m2, E5M2)):
        q, scale = jax.jit(fp8.quantize, static_argnums=1)(x, dtype)
        assert (q.dtype, scale.dtype) == (dtype, jnp.float32)
        assert np.log2(float(scale)) % 1 == 0, "the scale is no power of two"
        assert kind[2] / 2 <= float(jnp.max(jnp.abs(q.astype(jnp.float32)))) <= kind[2]
        got = np.asarray(q.astype(jnp.float32), np.float64) * float(scale)
        np.testing.assert_array_equal(got, rounded(x, kind))


def test_zero_stays_zero_and_what_is_not_finite_does_not_become_so():
    x, kernel = jnp.zeros((4, 128)), draw((128, 128), 1)
    np.testing.assert_array_equal(fp8.matmul(x, kernel), 0.0)
    for bad in (jnp.inf, jnp.nan):
        y = fp8.matmul(x.at[2, 5].set(bad), kernel)
        assert not np.isfinite(np.asarray(y[2])).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_and_its_gradients_are_those_of_the_rounded_values(dtype):
    x = draw((3, 5, 128), 2, dtype=dtype)
    kernel, dy = draw((128, 144), 3), draw((3, 5, 144), 4, 2.0, dtype) * jnp.asarray(1e-6, dtype)
    y, pull = jax.vjp(jax.jit(fp8.matmul), x, kernel)
    dx, dkernel = pull(dy)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (dtype, dtype, jnp.float32)

    wide = [np.asarray(a.astype(jnp.float32), np.float64) for a in (x, kernel, dy)]
    x8, w8, g8 = (rounded(a, k) for a, k in zip(wide, (E4M3, E4M3, E5M2), strict=True))
    ulp = 2.0**-8 if dtype == jnp.bfloat16 else 1e-6
    wants = (x8 @ w8, g8 @ w8.T, np.einsum("btd,btf->df", x8, g8))
    for got, want, tolerance in zip((y, dx, dkernel), wants, (ulp, ulp, 1e-6), strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance * np.abs(want).max()
        )
    # and the rounding is there: these are no products of the values themselves
    assert np.abs(np.asarray(y, np.float64) - wide[0] @ wide[1]).max() > 3 * ulp


def test_the_program_multiplies_8_bit_floats():
    def total(x, kernel):
        return jnp.sum(jnp.square(fp8.matmul(x, kernel)))

    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).lower(
        draw((64, 128), 5), draw((128, 256), 6)
    )
    text = lowered.as_text(dialect="hlo")
    assert count_products(text, "f8") == 3
    assert "f8e4m3fn[64,128]" in text
    assert "f8e5m2[64,256]" in text
    plain = jax.jit(jnp.matmul).lower(draw((64, 128), 5), draw((128, 256), 6))
    assert count_products(plain.as_text(dialect="hlo"), "f8") == 0


def test_products_are_counted_in_what_a_gpu_compiles():
    text = """
    %a = f8e4m3fn[64,128]{1,0} parameter(0)
    %b.1 = f8e5m2[64,256]{1,0} parameter(1)
    %c = bf16[64,256]{1,0} convert(%b.1)
    %dot.1 = f32[128,256]{1,0} dot(%a, %b.1), lhs_contracting_dims={0}
    %dot.2 = f32[128,256]{1,0} dot(%a, %c), lhs_contracting_dims={0}
    %y = (bf16[8,8], s8[99]) custom-call(%a, %b.1), custom_call_target="__cublas$lt$matmul$f8"
    %z = (bf16[8,8], s8[99]) custom-call(%c, %c), custom_call_target="__cublas$lt$matmul"
    """
    assert count_products(text, "f8") == 2
    shapes_in_place = " dot(f8e4m3fn[64,128]{1,0} %a, f8e5m2[64,256]{1,0} %b.1), lhs"
    assert count_products(text + shapes_in_place, "f8") == 3


def test_only_large_matrices_are_taken():
    assert fp8.takes(1280, 5120)
    assert fp8.takes(128, 128)
    for shape in ((12, 128), (1280, 10), (112, 5120), (136, 1280), (1280, 1288)):
        assert not fp8.takes(*shape), shape
