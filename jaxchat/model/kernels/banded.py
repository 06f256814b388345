"""Causal attention of whole rows with bfloat16 operands and float32 sums, for a CPU.

Queries are cut into blocks. With a short window every block sees equally many keys, and all blocks
are one product of a stack; else one block comes after the other, each with the keys up to its end.
The gradient is by hand: scores are computed again, transposed, so that only one matrix of a block
has to be transposed in memory (see `kernels.matmul`). As in FlashAttention-2 (arXiv 2307.08691),
the weights' own sum is never differentiated: the gradient of a score is w (dw - sum(y dy)).

Axes: N rows of the batch times key/value heads, R query heads of each, T time, K head size,
Q queries of a block, S keys that it sees, C blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxchat.model.kernels.blocked import spans, visible
from jaxchat.model.kernels.matmul import dot

BLOCK = 64  # queries of a block with a short window, or of short rows
LONG_BLOCK = 256  # of one of long rows with a long window: fewer and larger products
MAX_BLOCKS = 8  # of long ones, so that the compile time of long rows stays bounded
SCORES = 512 * 1024  # computed at once: what fits the cache of a CPU


def banded_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    window: int,
) -> Float[Array, "B T H K"]:
    """Each query sees its own key and `window` keys to its left. The result has q's dtype."""
    batch, time, heads, size = q.shape
    groups = k.shape[2]
    q = (q * jnp.asarray(size**-0.5, q.dtype)).reshape(batch, time, groups, -1, size)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch * groups, -1, time, size)
    k, v = (x.transpose(0, 2, 1, 3).reshape(batch * groups, time, size) for x in (k, v))
    y = _attend(min(window, time), q, k, v)
    y = y.reshape(batch, groups, -1, time, size).transpose(0, 3, 1, 2, 4)
    return y.reshape(batch, time, heads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window: int, q: Array, k: Array, v: Array) -> Array:
    """q [N,R,T,K], k and v [N,T,K] -> [N,R,T,K]."""
    return _forward(window, q, k, v)[0]


def _forward(window: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    y, total = _some_at_once(functools.partial(_attend_some, window), window, narrow)
    return y.astype(q.dtype), (*narrow, y, total)


def _backward(window: int, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    dq, dk, dv = _some_at_once(functools.partial(_pull_some, window), window, (*saved, dy))
    return dq.astype(dy.dtype), dk.astype(dy.dtype), dv.astype(dy.dtype)


_attend.defvjp(_forward, _backward)


def _some_at_once(function: Callable[..., Any], window: int, arrays: tuple[Array, ...]) -> Any:
    """`function` of all N, in parts whose scores stay in the cache."""
    count, repeats, time, _ = arrays[0].shape
    block, short = _block_size(time, window)
    keys = block + window if short else time
    most = max(1, SCORES // (repeats * time * keys))
    once = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
    if once == count:
        return function(*arrays)
    cut = tuple(x.reshape(count // once, once, *x.shape[1:]) for x in arrays)
    results = lax.map(lambda some: function(*some), cut)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), results)


def _block_size(time: int, window: int) -> tuple[int, bool]:
    """Queries of a block, and whether all blocks are done in one stack."""
    if window <= time // 2 and time >= 2 * BLOCK:
        return BLOCK, True
    block = LONG_BLOCK if time >= 2 * LONG_BLOCK else BLOCK
    return max(min(block, time), math.ceil(time / MAX_BLOCKS)), False


def _attend_some(window: int, q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """What each query attended [N,R,T,K], and the sum of its weights [N,R,T,1]."""
    time = q.shape[2]
    block, short = _block_size(time, window)
    if short:
        stack = _Stack(q.shape[0], time, block, window)
        y, total = _tile(stack.cut(q), stack.seen(k), stack.seen(v), stack.visible())
        return stack.join(y), stack.join(total)
    parts = [
        _tile(q[:, :, own], k[:, seen], v[:, seen], visible(own, seen, window)[None])
        for own, seen in spans(time, block, window)
    ]
    y, total = (jnp.concatenate(side, axis=2) for side in zip(*parts, strict=True))
    return y, total


def _pull_some(
    window: int, q: Array, k: Array, v: Array, y: Array, total: Array, dy: Array
) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v."""
    time = q.shape[2]
    block, short = _block_size(time, window)
    dy = dy / total
    delta = jnp.sum(dy * y, axis=-1, keepdims=True)
    if short:
        stack = _Stack(q.shape[0], time, block, window)
        queries = stack.cut(q), stack.cut(dy), stack.cut(delta)
        dq, dk, dv = _pull_tile(*queries, stack.seen(k), stack.seen(v), stack.visible())
        return stack.join(dq), stack.add(dk), stack.add(dv)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for own, seen in spans(time, block, window):
        queries = q[:, :, own], dy[:, :, own], delta[:, :, own]
        dq, *pair = _pull_tile(*queries, k[:, seen], v[:, seen], visible(own, seen, window)[None])
        edges = ((0, 0), (seen.start, time - seen.stop), (0, 0))
        dqs.append(dq)
        dk, dv = (x + jnp.pad(part, edges) for x, part in zip((dk, dv), pair, strict=True))
    return jnp.concatenate(dqs, axis=2), dk, dv


def _tile(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    """q [N,R,Q,K], k and v [N,S,K], visible [N or 1,Q,S] -> y [N,R,Q,K], sums [N,R,Q,1]."""
    count, repeats, block, size = q.shape
    scores = dot(q.reshape(count, -1, size), k, over=(-1, -1))
    scores = scores.reshape(count, repeats, block, -1)
    weights = jnp.where(visible[:, None], jnp.exp(scores), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    y = dot(weights.reshape(count, repeats * block, -1), v)
    return y.reshape(q.shape) / total, total


def _pull_tile(
    q: Array, dy: Array, delta: Array, k: Array, v: Array, visible: Array
) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v of a tile; dy [N,R,Q,K] and delta [N,R,Q,1] are over the sums."""
    count, repeats, block, size = q.shape
    q, dy = (x.reshape(count, -1, size).astype(jnp.bfloat16) for x in (q, dy))
    scores = dot(k, q, over=(-1, -1)).reshape(count, -1, repeats, block)
    visible = jnp.swapaxes(visible, 1, 2)[:, :, None]
    weights = jnp.where(visible, jnp.exp(scores), 0.0).reshape(count, -1, repeats * block)
    by_weights = dot(v, dy, over=(-1, -1)) - delta.reshape(count, 1, -1)
    by_scores = (weights * by_weights).astype(jnp.bfloat16)
    dq = dot(by_scores, k, over=(-2, -2))
    return dq.reshape(count, repeats, block, size), dot(by_scores, q), dot(weights, dy)


class _Stack:
    """Cuts time into blocks of queries, each with the whole blocks of keys that its window meets.

    The last block is filled up; its extra keys lie after every real query, so none sees them.
    """

    def __init__(self, count: int, time: int, block: int, window: int) -> None:
        self.count, self.time, self.block, self.window = count, time, block, window
        self.blocks = math.ceil(time / block)
        self.reach = math.ceil(window / block)  # blocks to the left of its own
        self.filling = self.blocks * block - time

    def cut(self, x: Array) -> Array:
        """[N,R,T,K] -> [N*C,R,Q,K]."""
        x = jnp.pad(x, ((0, 0), (0, 0), (0, self.filling), (0, 0)))
        x = x.reshape(*x.shape[:2], self.blocks, self.block, x.shape[-1])
        return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    def join(self, x: Array) -> Array:
        """The inverse of `cut`."""
        x = jnp.moveaxis(x.reshape(self.count, self.blocks, *x.shape[1:]), 1, 2)
        return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, : self.time]

    def seen(self, x: Array) -> Array:
        """Keys or values [N,T,K] -> those each block sees, [N*C,S,K]; zeros before the first."""
        left = self.reach * self.block
        x = jnp.pad(x, ((0, 0), (left, self.filling), (0, 0)))
        x = x.reshape(self.count, -1, self.block, x.shape[-1])
        shifted = [x[:, shift : shift + self.blocks] for shift in range(self.reach + 1)]
        return jnp.stack(shifted, axis=2).reshape(self.count * self.blocks, -1, x.shape[-1])

    def add(self, x: Array) -> Array:
        """Gradients of what `seen` gave -> [N,T,K]: every block's share of a key is added."""
        x = x.reshape(self.count, self.blocks, self.reach + 1, self.block, x.shape[-1])
        total = x[:, :, self.reach]
        for shift in range(1, self.reach + 1):
            later = x[:, shift:, self.reach - shift]
            total = total + jnp.pad(later, ((0, 0), (0, shift), (0, 0), (0, 0)))
        return total.reshape(self.count, -1, x.shape[-1])[:, : self.time]

    def visible(self) -> Array:
        """Whether a query of a block sees a key of those before it, [N*C,Q,S]."""
        left = self.reach * self.block
        keys = jnp.arange(left + self.block)
        back = jnp.arange(left, left + self.block)[:, None] - keys[None, :]
        near = (back >= 0) & (back <= self.window)
        starts = jnp.arange(self.blocks) * self.block
        there = starts[:, None] + keys[None, :] >= left
        visible = near[None] & there[:, None, :]
        return jnp.tile(visible, (self.count, 1, 1))
