"""Causal attention, whole rows at a time (training, prefill) and one query at a time (decoding).

Axes: B batch, T time, S keys, H query heads, G key/value heads, R = H / G, K head size.

Queries and keys are RMS-normalised before they come here, so a score is at most sqrt(K) times
qk_scale squared: exp() of it fits in float32 and no maximum is subtracted first.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxchat.model.kernels.banded import banded_attention
from jaxchat.model.kernels.matmul import Products
from jaxchat.model.kv_cache import BLOCK, whole_blocks

# by name, or a function like `causal_attention`
Implementation = Literal["blocked", "banded", "cudnn"] | Callable[..., Array]

MIN_BLOCK = 64  # queries: smaller blocks skip more masked keys, but make more and smaller products
MAX_BLOCKS = 8  # so that the compile time of long rows stays bounded
MAX_SCORE = 80.0  # exp(80) summed over a context is still finite in float32


def causal_attention(
    q: Array, k: Array, v: Array, *, window: int, implementation: Implementation = "blocked"
) -> Array:
    """Each query sees its own key and `window` keys to its left.

    q [B,T,H,K], k and v [B,T,G,K] -> [B,T,H,K], in q's dtype. "cudnn" needs a GPU and half
    precision; "blocked" and "banded" run anywhere, the latter with operands of bfloat16.
    """
    if callable(implementation):
        y: Array = implementation(q, k, v, window=window)
        return y
    if implementation == "cudnn":
        # is_causal is needed beside the window: without it, cudnn attends to the future
        # (jax pull request 39576)
        left = None if window >= q.shape[1] - 1 else (window, 0)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=left, implementation="cudnn"
        )
    if implementation == "banded":
        return banded_attention(q, k, v, window=window)
    return blocked_attention(q, k, v, window=window)


def blocked_attention(q: Array, k: Array, v: Array, *, window: int) -> Array:
    """`causal_attention`, one key/value head after the other, in blocks of queries.

    No block computes keys it cannot see. Scores are computed again for the gradient, so that they
    never leave the cache of a CPU: with B=16, T=256, H=4, K=32 on 2 cores, forward and backward
    take 19 ms against 38 with saved scores; with K=64 it is even.
    """
    batch, time, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, time, groups, heads // groups, size).transpose(2, 0, 3, 1, 4)
    y = _every_head(window, q, k.transpose(2, 0, 1, 3), v.transpose(2, 0, 1, 3))
    return y.transpose(1, 3, 0, 2, 4).reshape(batch, time, heads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _every_head(window: int, q: Array, k: Array, v: Array) -> Array:
    """q [G,B,R,T,K], k and v [G,B,T,K] -> [G,B,R,T,K]."""

    def one(head: tuple[Array, Array, Array]) -> Array:
        return _one_head(*head, window=window)

    y: Array = lax.map(one, (q, k, v))
    return y


def _every_head_forward(
    window: int, q: Array, k: Array, v: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return _every_head(window, q, k, v), (q, k, v)


def _every_head_backward(
    window: int, saved: tuple[Array, Array, Array], dy: Array
) -> tuple[Array, Array, Array]:
    def one(head: tuple[Array, ...]) -> Any:
        *inputs, dy = head
        _, pull = jax.vjp(functools.partial(_one_head, window=window), *inputs)
        return pull(dy)

    dq, dk, dv = lax.map(one, (*saved, dy))
    return dq, dk, dv


_every_head.defvjp(_every_head_forward, _every_head_backward)


def _one_head(q: Array, k: Array, v: Array, window: int) -> Array:
    """q [B,R,T,K], k and v [B,T,K] -> [B,R,T,K]."""
    time, size = q.shape[2:]
    block = max(MIN_BLOCK, math.ceil(time / MAX_BLOCKS))
    q = q * jnp.asarray(size**-0.5, q.dtype)
    outputs = []
    for start in range(0, time, block):
        stop, first = min(start + block, time), max(0, start - window)
        scores = jnp.einsum(
            "brtk,bsk->brts",
            q[:, :, start:stop],
            k[:, first:stop],
            preferred_element_type=jnp.float32,
        )
        back = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)[None, :]
        visible = (back >= 0) & (back <= window)
        weights = jnp.where(visible[None, None], jnp.exp(scores), 0.0)
        y = jnp.einsum(
            "brts,bsk->brtk",
            weights.astype(v.dtype),
            v[:, first:stop],
            preferred_element_type=jnp.float32,
        )
        outputs.append(y / jnp.sum(weights, axis=-1, keepdims=True))  # here is least to divide
    return jnp.concatenate(outputs, axis=2).astype(q.dtype)


def cached_attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """One query a row against the keys of a cache.

    q [B,H,K], k and v [B,G,S,K], visible [B,S] bool -> [B,H,K]. A row that sees no key gives NaN.

    Every block of slots is a product of its own, and the blocks are added from the first to the
    last: so the result is the same to the last bit however many hidden blocks come after.
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
    y = _in_order(y) / _in_order(_by_halves(weights))
    return y.reshape(batch, heads, size).astype(q.dtype)


def _in_order(blocks: Array) -> Array:
    """The sum over axis 2, added up from the first."""
    total = blocks[:, :, 0]
    for number in range(1, blocks.shape[2]):
        total = total + blocks[:, :, number]
    return total


def _by_halves(weights: Array) -> Array:
    """The sum [...,1] over the last axis, a power of two, as additions of halves.

    XLA's own sum on a CPU is taken in an order that depends on the other axes.
    """
    while weights.shape[-1] > 1:
        half = weights.shape[-1] // 2
        weights = weights[..., :half] + weights[..., half:]
    return weights


def choose_attention(
    head_dim: int, dtype: DTypeLike, products: Products = "plain"
) -> Implementation:
    """The fastest implementation that works here, tried on a tiny case.

    "cudnn" on a GPU in half precision; elsewhere "blocked", or with `products` of bfloat16
    "banded". Where cudnn was expected but fails, a RuntimeWarning says why.
    """
    if products == "bfloat16":
        return "banded"
    if jax.default_backend() != "gpu" or jnp.dtype(dtype).itemsize != 2:
        return "blocked"
    x = jnp.ones((1, 64, 1, head_dim), dtype)

    def total(q: Array) -> Array:
        y = causal_attention(q, x, x, window=16, implementation="cudnn")
        return jnp.sum(y.astype(jnp.float32))

    try:
        jax.jit(jax.grad(total))(x).block_until_ready()
    except Exception as error:  # whatever the backend raises, training can go on without it
        warnings.warn(
            f"cudnn attention does not work on this machine, so the slower blocked one is used: "
            f"{error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return "blocked"
    return "cudnn"
