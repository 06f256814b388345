"""The residual stream as a weighted sum, with gradients of the weights that cost few bytes.

The gradient of a weight is a sum over the whole stream. Automatic differentiation multiplies and
sums in passes of their own, in the stream's dtype; here one pass over what is there takes both, in
float32. The barriers keep what is there: XLA would compute it again for each use, from more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32


def plain_mix(
    x: Float[Array, "*rows D"],
    y: Float[Array, "*rows D"],
    a: Float[Array, ""],
    b: Float[Array, ""],
) -> Float[Array, "*rows D"]:
    """a x + b y."""
    return a * x + b * y


@jax.custom_vjp
def mix(
    x: Float[Array, "*rows D"],
    y: Float[Array, "*rows D"],
    a: Float32[Array, ""],
    b: Float32[Array, ""],
) -> Float[Array, "*rows D"]:
    """a x + b y in their dtype; computed in float32."""
    wide = a * x.astype(jnp.float32) + b * y.astype(jnp.float32)
    mixed: Array = lax.optimization_barrier(wide.astype(x.dtype))
    return mixed


def _forward(x: Array, y: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    return mix(x, y, a, b), (x, y, a, b)


def _backward(saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, Array]:
    x, y, a, b = saved
    wide = lax.optimization_barrier(grad).astype(jnp.float32)

    def share(of: Array) -> Array:
        return jnp.sum(jnp.sum(wide * of.astype(jnp.float32), axis=-1))

    return (a * wide).astype(x.dtype), (b * wide).astype(y.dtype), share(x), share(y)


mix.defvjp(_forward, _backward)
