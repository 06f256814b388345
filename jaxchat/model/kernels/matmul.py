"""Matrix products by precision; those of operands rounded to bfloat16 with float32 sums.

The latter are for processors that multiply bfloat16 faster than float32 (AVX-512 BF16, AMX): twice
as fast in XLA 0.10 on a CPU, and arrays stay float32 between products. What is rounded, and what
not, is what a GPU's matrix units do with bfloat16 activations, whose results are rounded once more.

XLA on a CPU has such a product only where the left operand is contracted over its last axis and
lies in memory row by row; any other it computes in float32, and warns of nothing. So an operand is
transposed in memory where it has to be.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

from jaxchat.model.backend import MatmulPrecision
from jaxchat.model.kernels import fp8, int8, native

SMALLEST = 64  # side of a matrix: rounding costs more than a smaller product gains


def takes(rows: int, columns: int) -> bool:
    """Whether a matrix of these sides is worth rounding."""
    return min(rows, columns) >= SMALLEST


def matmul(
    x: Float[Array, "*rows D"],
    kernel: Float[Array, "D F"] | int8.Kernel,
    precision: MatmulPrecision = "default",
    rounded: fp8.Kernel | Float[Array, "D F"] | None = None,
    bound: float | None = None,
) -> Float[Array, "*rows F"]:
    """x times kernel, in x's dtype; a large one in `precision`. Summed in float32.

    `rounded` is the kernel as it is multiplied, if at hand: in fp8, or in x's dtype. For fp8 |x|
    never exceeds `bound`, where that is known.
    """
    if isinstance(kernel, int8.Kernel):
        return int8.matmul(x, kernel)
    if precision == "fp8" and fp8.takes(*kernel.shape):
        assert rounded is None or isinstance(rounded, fp8.Kernel)
        return fp8.matmul(x, kernel, rounded, bound)
    if precision == "native" and native.takes_products(*kernel.shape):
        return native.linear(x, (kernel,))[0]
    if precision in ("bfloat16", "native") and takes(*kernel.shape):
        return rounded_matmul(x, kernel)
    if x.dtype != kernel.dtype:
        assert not isinstance(rounded, fp8.Kernel)
        return mixed_matmul(x, kernel, rounded)
    return widened_matmul(x, kernel).astype(x.dtype)


def widened_matmul(
    x: Float[Array, "*rows D"],
    kernel: Float[Array, "D F"] | int8.Kernel,
    precision: MatmulPrecision = "default",
) -> Float32[Array, "*rows F"]:
    """`matmul` whose result is float32 whatever x is; never in fp8."""
    if isinstance(kernel, int8.Kernel):
        return int8.matmul(x, kernel)
    if precision == "bfloat16" and takes(*kernel.shape):
        return rounded_matmul(x, kernel).astype(jnp.float32)
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


@jax.custom_vjp
def mixed_matmul(
    x: Float[Array, "*rows D"],
    kernel: Float[Array, "D F"],
    rounded: Float[Array, "D F"] | None = None,
) -> Float[Array, "*rows F"]:
    """x times kernel rounded to x's dtype, in that; gradients likewise, but for the kernel's, which
    is summed in float32 and stays in the kernel's dtype. `rounded` is the kernel rounded, if at
    hand.
    """
    return x @ (kernel if rounded is None else rounded).astype(x.dtype)


def _mixed_forward(
    x: Array, kernel: Array, rounded: Array | None
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return mixed_matmul(x, kernel, rounded), (x, kernel, rounded)


def _mixed_backward(
    saved: tuple[Array, Array, Array | None], dy: Array
) -> tuple[Array, Array, None]:
    x, kernel, rounded = saved
    dx = dy @ (kernel if rounded is None else rounded).astype(dy.dtype).T
    rows = tuple(range(x.ndim - 1))
    dkernel = lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return dx, dkernel.astype(kernel.dtype), None


mixed_matmul.defvjp(_mixed_forward, _mixed_backward)


def round_kernels(params: Any) -> Any:
    """Parameters with their large kernels rounded in advance, as products of bfloat16 would."""

    def round_one(path: tuple[Any, ...], x: Array) -> Array:
        is_large = path[-1] == jax.tree_util.DictKey("kernel") and takes(*x.shape)
        return x.astype(jnp.bfloat16) if is_large else x

    return jax.tree_util.tree_map_with_path(round_one, params)


@jax.custom_vjp
def rounded_matmul(
    x: Float[Array, "*rows D"], kernel: Float[Array, "D F"]
) -> Float[Array, "*rows F"]:
    """x times kernel: bfloat16 operands, forward and backward.

    What is saved for the gradients is bfloat16 too: half the memory.
    """
    return _forward(x, kernel)[0]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    rows, matrix = (a.astype(jnp.bfloat16) for a in (x.reshape(-1, x.shape[-1]), kernel))
    y = dot(rows, matrix).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1), (rows, matrix)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    rows, matrix = saved
    dy_rows = dy.reshape(-1, dy.shape[-1]).astype(jnp.bfloat16)
    dx = dot(dy_rows, matrix, over=(-1, -1)).astype(dy.dtype)
    dkernel = dot(rows, dy_rows, over=(-2, -2))
    return dx.reshape(*dy.shape[:-1], -1), dkernel


rounded_matmul.defvjp(_forward, _backward)


def dot(
    a: Float[Array, "*stack _ _"],
    b: Float[Array, "*stack _ _"],
    *,
    over: tuple[int, int] = (-1, -2),
    dtype: DTypeLike = jnp.bfloat16,
) -> Float32[Array, "*stack _ _"]:
    """Products of matrices, or of stacks of equally many, with operands in `dtype`.

    `over` are the axes, -1 or -2, that are summed over: (-1, -2) for a b, (-1, -1) for a b^T,
    (-2, -2) for a^T b.
    """
    a, b = a.astype(dtype), b.astype(dtype)
    left, right = over
    stack = tuple(range(a.ndim - 2))

    def multiplied(a: Array, left: int) -> Array:
        dimensions = (((a.ndim + left,), (b.ndim + right,)), (stack, stack))
        y: Array = lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
        return y

    if left == -2 and jnp.dtype(dtype).itemsize == 2:
        y: Array = lax.platform_dependent(  # decided when it is lowered, for whatever platform
            a, cpu=lambda a: multiplied(transposed(a), -1), default=lambda a: multiplied(a, left)
        )
        return y
    return multiplied(a, left)


def transposed(a: Float[Array, "*stack M N"]) -> Float[Array, "*stack N M"]:
    """The last two axes exchanged, in memory, too.

    Through one axis behind a barrier, as XLA otherwise remembers how the array lay.
    """
    flat: Array = lax.optimization_barrier(jnp.swapaxes(a, -1, -2).reshape(-1))
    return flat.reshape(*a.shape[:-2], a.shape[-1], a.shape[-2])


def count_products(hlo: str, kind: str = "bf16") -> int:
    """How many products of operands of `kind`, "bf16" or "f8", a program does, by its text
    (`as_text()`, before or after compilation): as in Triton's fusions, and by cuBLASLt's fp8 call.
    """
    count = hlo.count("__cublas$lt$matmul$f8") if kind == "f8" else 0
    operand = rf"(?:{kind}\S+ )?(%?[\w.\-]+)"
    for computation in hlo.split("\n}"):
        narrow = set(re.findall(rf"(%?[\w.\-]+) = {kind}\w*\[", computation))
        dots = re.findall(rf" dot\({operand}, {operand}\)", computation)
        count += sum(a in narrow and b in narrow for a, b in dots)
    return count
