"""Products with kernels of 8-bit integers, for decoding on a CPU: a quarter of the bytes to read.

A kernel has one scale a column, "absmax" over it. A row of activations is rounded to 16-bit
integers of one step (its largest magnitude over 127 * 128), and the products of integers are summed
exactly: a row gets the same to the last bit in any company, and on any processor.

XLA on a CPU widens an 8-bit kernel to a float32 copy before the product, in each step anew, or, for
two rows and more of integers, interleaves it anew. So there it calls our own product (Rust,
`bpe_rs/src/int8.rs`) through its foreign function interface; the formula in JAX is for all other
platforms, and what the tests compare it with.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float32, Int8

from jaxchat import _bpe

LARGEST = 127  # magnitude of a kernel's integers, and of the two that hold one of a row's
COLUMNS = 16  # of a panel
SMALLEST = 64  # side of a matrix that is worth it
TARGET = "jaxchat_int8_matmul"
TINY = 1e-30  # least magnitude of a row's or column's largest number that counts as more than zero


class Kernel(NamedTuple):
    """A kernel [D,F] in 8 bits, F in panels of 16 columns and D in pairs, both filled with zeros.

    What one instruction multiplies by a pair of a row's numbers lies together.
    """

    panels: Int8[Array, "panels pairs 16 2"]
    scale: Float32[Array, " F"]


@jax.jit
def quantize(kernel: Float32[Array, "D F"]) -> Kernel:
    """The nearest kernel in 8 bits."""
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=0), TINY) / LARGEST
    values = jnp.round(kernel / scale[None, :]).astype(jnp.int8)
    width, columns = values.shape
    values = jnp.pad(values, ((0, width % 2), (0, -columns % COLUMNS)))
    panels = values.reshape(-1, 2, values.shape[1] // COLUMNS, COLUMNS)
    return Kernel(panels.transpose(2, 0, 3, 1), scale)


def dequantize(kernel: Kernel) -> Float32[Array, "D F"]:
    """The matrix that a kernel stands for, with D even."""
    return _matrix(*kernel).astype(jnp.float32) * kernel.scale[None, :]


def _matrix(panels: Array, scale: Array) -> Array:
    """The integers [D,F] of panels."""
    values = panels.transpose(1, 3, 0, 2)
    return values.reshape(-1, panels.shape[0] * COLUMNS)[:, : scale.shape[0]]


def quantize_kernels(params: Any) -> Any:
    """Parameters with their large kernels in 8 bits; not the tables, of which a step reads rows."""

    def one(path: tuple[Any, ...], x: Array) -> Array | Kernel:
        is_kernel = path[-1] == jax.tree_util.DictKey("kernel")
        return quantize(x) if is_kernel and min(x.shape) >= SMALLEST else x

    return jax.tree_util.tree_map_with_path(one, params)


def matmul(x: Float32[Array, "*rows D"], kernel: Kernel) -> Float32[Array, "*rows F"]:
    """x times what the kernel stands for."""
    rows = x.reshape(-1, x.shape[-1])
    rows = jnp.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    _register()
    y: Array = lax.platform_dependent(rows, *kernel, cpu=_called, default=plain_matmul)
    return y.reshape(*x.shape[:-1], -1)


@functools.cache
def _register() -> None:
    jax.ffi.register_ffi_target(TARGET, _bpe.int8_matmul(), platform="cpu")


def _called(x: Array, panels: Array, scale: Array) -> Array:
    shape = jax.ShapeDtypeStruct((x.shape[0], scale.shape[0]), jnp.float32)
    y: Array = jax.ffi.ffi_call(TARGET, shape)(x, panels, scale)
    return y


def plain_matmul(
    x: Float32[Array, "R D"], panels: Int8[Array, "panels pairs 16 2"], scale: Float32[Array, " F"]
) -> Float32[Array, "R F"]:
    """The product as JAX writes it: each row as two of 8 bits, 128 * high + low."""
    most = np.float32(LARGEST * 128)
    largest = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), TINY)
    values = jnp.round(x * (most / largest)).astype(jnp.int32)
    high = (values + 64) >> 7
    halves = jnp.concatenate([high, values - (high << 7)]).astype(jnp.int8)
    sums = jnp.matmul(halves, _matrix(panels, scale), preferred_element_type=jnp.int32)
    high, low = jnp.split(sums, 2)
    total = (high + (low >> 7)).astype(jnp.float32) * 128.0 + (low & 127).astype(jnp.float32)
    return total * (largest * (1 / most)) * scale[None, :]
