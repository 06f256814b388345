"""RMSNorm, alone or followed by the rotation of positions, with few bytes moved on a GPU.

What `gpt.rms_norm` and `rope.rotate` compute, written so that XLA makes each direction one kernel
that reads its inputs once. It does so where a sum over the last axis and what the sum is broadcast
to have one producer and one consumer each, and automatic differentiation leaves neither: it keeps
the scale for the backward pass, and sums two products there. So the gradients are written out here
and keep the input alone.

Axes: B batch, T time, H heads, K head size, C = K/2 pairs of channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def rms_norm(x: Float[Array, "*rows D"], epsilon: float) -> Float[Array, "*rows D"]:
    """x divided by the root mean square of the last axis; computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * _inverse_root(_mean(wide * wide), epsilon)).astype(x.dtype)


def _rms_norm_forward(x: Array, epsilon: float) -> tuple[Array, Array]:
    return rms_norm(x, epsilon), x


def _rms_norm_backward(epsilon: float, x: Array, dy: Array) -> tuple[Array]:
    """With n = s x and s = 1 / rms(x): dx = s (dy - n mean(n dy))."""
    x = lax.optimization_barrier(x)  # else XLA takes the sum of squares over from the forward pass
    wide, grad = x.astype(jnp.float32), dy.astype(jnp.float32)
    scale = _spread(wide, _inverse_root(_mean(wide * wide), epsilon))
    y = wide * scale
    share = grad * y
    return ((scale * (grad - y * _spread(share, _mean(share)))).astype(x.dtype),)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_rope(
    x: Float[Array, "B T H K"],
    cos: Float[Array, "#B T 1 C"],
    sin: Float[Array, "#B T 1 C"],
    factor: float,
    epsilon: float,
) -> Float[Array, "B T H K"]:
    """factor * rms_norm(rotate(x, cos, sin)).

    It is normalised before it is rotated, as a rotation leaves the norm as it is, and rounded to
    x's dtype once. There is no gradient with respect to cos and sin.
    """
    # The product that x comes from is reshaped to heads: in this kernel XLA could not tile that.
    wide = lax.optimization_barrier(x).astype(jnp.float32)
    y = wide * (factor * _inverse_root(_mean(wide * wide), epsilon))
    return _joined(*_turned(*_halves(y), cos, sin), x)


def _norm_rope_forward(
    x: Array, cos: Array, sin: Array, factor: float, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array]]:
    return norm_rope(x, cos, sin, factor, epsilon), (x, cos, sin)


def _norm_rope_backward(
    factor: float, epsilon: float, saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, None, None]:
    """The gradient turned back, then as in `rms_norm`; in halves, joined at the very end."""
    x, cos, sin = saved
    x, dy = lax.optimization_barrier((x, dy))
    (x1, x2), grads = _halves(x), _halves(dy)
    g1, g2 = _turned(*grads, cos, -sin)
    squares = x1 * x1 + x2 * x2
    scale = _spread(squares, _inverse_root(0.5 * _mean(squares), epsilon))
    y1, y2 = x1 * scale, x2 * scale
    share = g1 * y1 + g2 * y2
    mean = _spread(share, 0.5 * _mean(share))
    scale = factor * scale
    dx = _joined(scale * (g1 - y1 * mean), scale * (g2 - y2 * mean), x)
    return lax.optimization_barrier(dx), None, None


norm_rope.defvjp(_norm_rope_forward, _norm_rope_backward)


def _mean(x: Array) -> Array:
    """Over the last axis, which stays."""
    return jnp.mean(x, axis=-1, keepdims=True)


def _inverse_root(mean_square: Array, epsilon: float) -> Array:
    return lax.rsqrt(mean_square + epsilon)


def _spread(like: Array, row: Array) -> Array:
    """`row` [..., 1] in the shape of `like`, from which it was summed.

    XLA does not simplify 0 x away, as x may be infinite: so what follows has one producer, `like`.
    """
    return like * 0.0 + row


def _halves(x: Array) -> tuple[Array, Array]:
    """The first and the second half of the channels, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return first, second


def _turned(a: Array, b: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """Halves as `rope.rotate` rotates them; with -sin it is undone."""
    cos, sin = cos.astype(jnp.float32), sin.astype(jnp.float32)
    return a * cos + b * sin, b * cos - a * sin


def _joined(a: Array, b: Array, like: Array) -> Array:
    return jnp.concatenate([a, b], axis=-1).astype(like.dtype)
