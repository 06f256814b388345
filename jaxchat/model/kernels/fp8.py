"""Matrix products in 8-bit floats, forward and backward.

e4m3 (3 bits of fraction, at most 448) holds activations and weights, e5m2 (2 bits, at most 57344)
gradients; sums are float32. Every tensor has one scale, from its largest value at that moment: the
"tensorwise dynamic" recipe of torchao and nanochat. Two things differ:

- Scales are powers of two. They cost nothing in precision, which floats carry in their fraction,
  and scaling before and after the product is exact in whatever type it happens.
- The products' operands are 8-bit floats themselves. The pattern of Flax and Transformer Engine,
  to dequantise and multiply in bf16, counts on XLA to see it and take cuBLASLt's fp8 product; since
  2024 it often takes away the conversions instead, and multiplies bf16 (JAX issue 24051).

With rows split over devices, each device scales its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

MULTIPLE = 16  # of both sides of a matrix, which the hardware wants
SMALLEST = 128  # side: below, converting costs more than the product gains
LARGEST = {jnp.dtype(jnp.float8_e4m3fn): 448.0, jnp.dtype(jnp.float8_e5m2): 57_344.0}
TINY = 1e-30  # largest value of a tensor that counts as more than zero


def takes(rows: int, columns: int) -> bool:
    """Whether a matrix of these sides is worth it; nanochat draws the same line."""
    return min(rows, columns) >= SMALLEST and rows % MULTIPLE == columns % MULTIPLE == 0


def quantize(
    x: Float[Array, "*shape"], dtype: DTypeLike
) -> tuple[Float[Array, "*shape"], Float32[Array, ""]]:
    """(values in the 8-bit `dtype`, a power of two): x is about their product.

    Infinities and NaNs stay what they are, or become NaN: nothing is clipped.
    """
    largest = jnp.maximum(jnp.max(jnp.abs(x)).astype(jnp.float32), TINY)
    _, exponent = jnp.frexp(LARGEST[jnp.dtype(dtype)] / largest)
    scale = jnp.ldexp(jnp.float32(1.0), exponent - 1)  # the power of two below, or the value itself
    return (x * scale.astype(x.dtype)).astype(dtype), 1.0 / scale


@jax.custom_vjp
def matmul(x: Float[Array, "*rows D"], kernel: Float32[Array, "D F"]) -> Float[Array, "*rows F"]:
    """x times kernel, in x's dtype.

    The gradient of the kernel is float32, that of x in x's dtype.
    """
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
    # Straight from the masters: rounding to bf16 on the way would be rounding twice.
    q, q_scale = quantize(x.reshape(-1, x.shape[-1]), jnp.float8_e4m3fn)
    w, w_scale = quantize(kernel, jnp.float8_e4m3fn)
    y = _product(q, w, (1, 0), x.dtype, lax.Precision.DEFAULT) * (q_scale * w_scale).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1), (q, q_scale, w, w_scale)


def _backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
    q, q_scale, w, w_scale = saved
    g, g_scale = quantize(dy.reshape(-1, dy.shape[-1]), jnp.float8_e5m2)
    # cuBLASLt sums with fewer bits where the precision is the default: good enough forward only
    exact = lax.Precision.HIGHEST
    dx = _product(g, w, (1, 1), dy.dtype, exact) * (g_scale * w_scale).astype(dy.dtype)
    dkernel = _product(q, g, (0, 0), jnp.float32, exact) * (q_scale * g_scale)
    return dx.reshape(*dy.shape[:-1], -1), dkernel


matmul.defvjp(_forward, _backward)


def _product(
    a: Array, b: Array, axes: tuple[int, int], dtype: DTypeLike, precision: lax.Precision
) -> Array:
    """Matrices multiplied over axis axes[0] of `a` and axes[1] of `b`."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.dtype(dtype)
    )
