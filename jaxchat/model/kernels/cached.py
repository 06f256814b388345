"""Attention of one query a row to the keys of a cache, for decoding.

XLA's products read all slots of all rows, and most of a small model's step on a CPU is that. So
there, in float32, it calls our own (Rust, `bpe_rs/src/cached.rs`) through its foreign function
interface, which reads what a row sees; the formula in JAX is for all else, and what the tests
compare it with.

Axes: B batch, H query heads, G key/value heads, K head size, S slots.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxchat import _bpe
from jaxchat.model.kernels.blocked import sum_by_halves, sum_in_order
from jaxchat.model.kv_cache import BLOCK, whole_blocks

LANES = 16  # numbers that our own computes at once
TARGET = "jaxchat_cached_attention"


def cached_attention(
    q: Float[Array, "B H K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    visible: Bool[Array, "B S"],
) -> Float[Array, "B H K"]:
    """One query a row against the keys of a cache. A row that sees no key gives NaN.

    The result is the same to the last bit in any company and however many hidden slots come after.
    """
    if q.dtype != jnp.float32 or q.shape[2] % LANES or not _is_there():
        return plain_cached_attention(q, k, v, visible)
    y: Array = lax.platform_dependent(q, k, v, visible, cpu=_called, default=plain_cached_attention)
    return y


@functools.cache
def _is_there() -> bool:
    """Whether this processor has what our own needs; registers it."""
    handler = _bpe.cached_attention()
    if handler is not None:
        jax.ffi.register_ffi_target(TARGET, handler, platform="cpu")
    return handler is not None


def _called(q: Array, k: Array, v: Array, visible: Array) -> Array:
    y: Array = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(q.shape, q.dtype))(q, k, v, visible)
    return y


def plain_cached_attention(
    q: Float[Array, "B H K"],
    k: Float[Array, "B G S K"],
    v: Float[Array, "B G S K"],
    visible: Bool[Array, "B S"],
) -> Float[Array, "B H K"]:
    """The formula in JAX.

    Every block of slots is a product of its own, and the blocks are added from the first to the
    last, for the same bits.
    """
    batch, heads, size = q.shape
    groups, slots = k.shape[1:3]
    if slots % BLOCK:
        extra = whole_blocks(slots) - slots
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))) for x in (k, v))
        visible = jnp.pad(visible, ((0, 0), (0, extra)))
    count = k.shape[2] // BLOCK
    shape = (batch, groups, count, BLOCK, size)
    q = (q * jnp.asarray(size**-0.5, q.dtype)).reshape(batch, groups, 1, heads // groups, size)
    q = jnp.broadcast_to(q, (batch, groups, count, heads // groups, size))
    scores = jnp.einsum(
        "bgnrk,bgnsk->bgnrs", q, k.reshape(shape), preferred_element_type=jnp.float32
    )
    hidden = jnp.where(visible, 0.0, -jnp.inf).reshape(batch, 1, count, 1, BLOCK)
    # The barrier keeps XLA from taking every exponential again for the sum, one at a time.
    weights = lax.optimization_barrier(jnp.exp(scores + hidden))
    y = jnp.einsum(
        "bgnrs,bgnsk->bgnrk",
        weights.astype(v.dtype),
        v.reshape(shape),
        preferred_element_type=jnp.float32,
    )
    y = sum_in_order(y) / sum_in_order(sum_by_halves(weights))
    return y.reshape(batch, heads, size).astype(q.dtype)
