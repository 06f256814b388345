"""relu(x)^2 whose gradient is computed from its result, so that x is not kept for it.

As 2 relu(x) = 2 sqrt(relu(x)^2), and the product that follows keeps the square in any case. In
float32 a root of a square is exact; where the square is rounded, the root has half its error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


@jax.custom_vjp
def relu2(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """relu(x)^2, in x's dtype."""
    return jnp.square(jnp.maximum(x, 0))


def _forward(x: Array) -> tuple[Array, Array]:
    y = relu2(x)
    return y, y


def _backward(y: Array, dy: Array) -> tuple[Array]:
    y = lax.optimization_barrier(y)  # else XLA makes |x| of the root of its square, and keeps x
    return ((2.0 * jnp.sqrt(y.astype(jnp.float32)) * dy.astype(jnp.float32)).astype(dy.dtype),)


relu2.defvjp(_forward, _backward)
