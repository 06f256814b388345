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

Finding the largest value is a pass over a tensor. Where `Compute.fused` counts bytes, a scale comes
instead from what the tensor cannot exceed, wherever that is known: sqrt(D) for what is normalised,
and see `relu2_mlp`. The products are the same but for what lies at the lower end of the range.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

MULTIPLE = 16  # of both sides of a matrix, which the hardware wants
SMALLEST = 128  # side: below, converting costs more than the product gains
E4M3, E5M2 = jnp.dtype(jnp.float8_e4m3fn), jnp.dtype(jnp.float8_e5m2)
LARGEST = {E4M3: 448.0, E5M2: 57_344.0}
LONGER = 1.125  # than before, at most, is a row rounded to 2 bits of fraction or more
TINY = 1e-30  # largest value of a tensor that counts as more than zero


def takes(rows: int, columns: int) -> bool:
    """Whether a matrix of these sides is worth it; nanochat draws the same line."""
    return min(rows, columns) >= SMALLEST and rows % MULTIPLE == columns % MULTIPLE == 0


class Rounded(NamedTuple):
    """A tensor in 8 bits: about values * scale."""

    values: Array
    scale: Float32[Array, ""]  # a power of two


def quantize(
    x: Float[Array, "*shape"], dtype: DTypeLike, bound: Float32[Array, ""] | float | None = None
) -> Rounded:
    """x in the 8-bit `dtype`, scaled by what |x| never exceeds: by default its largest value.

    A `bound` that is known beforehand saves the pass over x that finds the largest; that it is a
    few times larger costs what lies at the lower end of the type's range, and no precision else.
    Infinities and NaNs stay what they are, or become NaN: nothing is clipped.
    """
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32) if bound is None else bound
    largest = jnp.maximum(largest, TINY)
    _, exponent = jnp.frexp(LARGEST[jnp.dtype(dtype)] / largest)
    scale = jnp.ldexp(jnp.float32(1.0), exponent - 1)  # the power of two below, or the value itself
    return Rounded((x * scale.astype(x.dtype)).astype(dtype), 1.0 / scale)


class Kernel(NamedTuple):
    """A kernel as products take it: once a step is enough, whatever the micro-batches."""

    rounded: Rounded  # [D,F]
    row: Float32[Array, ""]  # the largest norm of a row, [F]
    column: Float32[Array, ""]  # and of a column, [D]


def round_kernel(kernel: Float32[Array, "D F"]) -> Kernel:
    """Straight from the masters: rounding to bf16 on the way would be rounding twice."""
    # Behind a barrier, that what follows reads 8 bits
    rounded = lax.optimization_barrier(quantize(lax.stop_gradient(kernel), E4M3))
    squares = jnp.square(rounded.values.astype(jnp.float32))
    row, column = (rounded.scale * jnp.sqrt(jnp.max(jnp.sum(squares, axis))) for axis in (1, 0))
    return Kernel(rounded, row, column)


def round_kernels(params: Any) -> Any:
    """The kernels of a model that are multiplied in fp8, by path; None for other parameters."""

    def one(path: tuple[Any, ...], x: Array) -> Kernel | None:
        is_kernel = path[-1] == jax.tree_util.DictKey("kernel")
        return round_kernel(x) if is_kernel and takes(*x.shape) else None

    return jax.tree_util.tree_map_with_path(one, params)


def matmul(
    x: Float[Array, "*rows D"],
    kernel: Float32[Array, "D F"],
    rounded: Kernel | None = None,
    bound: float | None = None,
) -> Float[Array, "*rows F"]:
    """x times kernel, in x's dtype.

    The gradient of the kernel is float32, that of x in x's dtype. `rounded` is the kernel's, if at
    hand, and `bound` what |x| never exceeds, where that is known.
    """
    w = quantize(lax.stop_gradient(kernel), E4M3) if rounded is None else rounded.rounded
    return _matmul(bound, x, kernel, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(bound: float | None, x: Array, kernel: Array, rounded: Rounded) -> Array:
    return _forward(bound, x, kernel, rounded)[0]


def _forward(
    bound: float | None, x: Array, kernel: Array, rounded: Rounded
) -> tuple[Array, tuple[Rounded, Rounded]]:
    del kernel
    q = quantize(_matrix(x), E4M3, bound)
    y = product(q, rounded, (1, 0), x.dtype, lax.Precision.DEFAULT)
    return y.reshape(*x.shape[:-1], -1), (q, rounded)


def _backward(
    bound: float | None, saved: tuple[Rounded, Rounded], dy: Array
) -> tuple[Array, Array, None]:
    del bound
    q, rounded = saved
    dx, dkernel = gradients(q, rounded, quantize(_matrix(dy), E5M2), dy.dtype)
    return dx.reshape(*dy.shape[:-1], -1), dkernel, None


_matmul.defvjp(_forward, _backward)


def gradients(
    x: Rounded, kernel: Rounded, dy: Rounded, dtype: DTypeLike
) -> tuple[Float[Array, "N D"], Float32[Array, "D F"]]:
    """Those of x [N,D], in `dtype`, and of the kernel [D,F], from dy [N,F]."""
    # cuBLASLt sums with fewer bits where the precision is the default: good enough forward only
    exact = lax.Precision.HIGHEST
    dx = product(dy, kernel, (1, 1), dtype, exact)
    return dx, product(x, dy, (0, 0), jnp.float32, exact)


def _matrix(x: Float[Array, "*rows D"]) -> Float[Array, "N D"]:
    return x.reshape(-1, x.shape[-1])


def product(
    a: Rounded, b: Rounded, axes: tuple[int, int], dtype: DTypeLike, precision: lax.Precision
) -> Array:
    """Matrices multiplied over axis axes[0] of `a` and axes[1] of `b`."""
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    y = lax.dot_general(
        a.values, b.values, dimensions,
        precision=precision, preferred_element_type=jnp.dtype(dtype),
    )  # fmt: skip
    return y * (a.scale * b.scale).astype(dtype)


def relu2_mlp(
    x: Float[Array, "*rows D"],
    up: tuple[Float32[Array, "D F"], Kernel],
    down: tuple[Float32[Array, "F D"], Kernel],
) -> Float[Array, "*rows D"]:
    """relu(x up)^2 down in x's dtype, for rows whose root mean square is 1 at most.

    No pass looks for the largest of what is F wide. With the lengths |x_n| of rows, |u_f| and |d_f|
    of up's columns and down's rows, Cauchy and Schwarz say

        h = x up             |h|  <= |x_n| |u_f|
        relu(h)^2                 <= (|x_n| |u_f|)^2
        da = dy down^T       |da| <= |dy_n| |d_f|
        dh = 2 relu(h) da    |dh| <= 2 |x_n| |u_f| |dy_n| |d_f|

    which is larger than the largest by about sqrt(D) / 5 for each product.
    """
    return _relu2_mlp(x, (up[0], down[0]), (up[1], down[1]))


@jax.custom_vjp
def _relu2_mlp(x: Array, kernels: tuple[Array, Array], rounded: tuple[Kernel, Kernel]) -> Array:
    return _mlp_forward(x, kernels, rounded)[0]


def _mlp_forward(
    x: Array, kernels: tuple[Array, Array], rounded: tuple[Kernel, Kernel]
) -> tuple[Array, tuple[Any, ...]]:
    del kernels
    up, down = rounded
    length = math.sqrt(x.shape[-1])
    q = quantize(_matrix(x), E4M3, length)
    h = product(q, up.rounded, (1, 0), x.dtype, lax.Precision.DEFAULT)
    reach = LONGER * length * up.column
    a = quantize(jnp.square(_relu(h)), E4M3, reach * reach)
    y = product(a, down.rounded, (1, 0), x.dtype, lax.Precision.DEFAULT)
    return y.reshape(x.shape), (q, h, a, reach, rounded)


def _mlp_backward(saved: tuple[Any, ...], dy: Array) -> tuple[Array, tuple[Array, Array], None]:
    q, h, a, reach, (up, down) = saved
    rows = _matrix(dy)
    length = LONGER * jnp.sqrt(jnp.max(jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=-1)))
    da, ddown = gradients(a, down.rounded, quantize(rows, E5M2, length), dy.dtype)
    dh = 2.0 * _relu(h) * da.astype(jnp.float32)
    bound = 2.0 * reach * length * down.row
    dx, dup = gradients(q, up.rounded, quantize(dh, E5M2, bound), dy.dtype)
    return dx.reshape(dy.shape), (dup, ddown), None


_relu2_mlp.defvjp(_mlp_forward, _mlp_backward)


def _relu(h: Array) -> Float32[Array, "N F"]:
    return jnp.maximum(h.astype(jnp.float32), 0.0)
