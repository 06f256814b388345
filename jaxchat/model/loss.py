"""Losses over features and a head, as (sum, weight): divide once, after accumulation and devices.

Axes: B batch, T time, D width, V vocabulary. Everything is summed in float32. Logits are capped,
so exp() of them cannot overflow and the cap itself is what logsumexp subtracts.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Float32, Int, Num

from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.kernels import fp8, native
from jaxchat.model.kernels.matmul import dot


def cross_entropy(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    mask: Num[Array, "B T"],
    *,
    softcap: float,
    weights: Float[Array, "B T"] | None = None,
    compute: Compute = PLAIN,
    rounded: fp8.Kernel | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Sum of mask * weights * -log p(target) in nats, and sum of mask.

    x are features, kernel is the head, the mask what a token weighs (0: it is not counted); weights
    are of either sign (1 when None), and the second sum does not have them. Where the mask is all
    zero both sums are 0.

    The gradient, with respect to x and kernel only, is computed together with the value,
    compute.chunk_rows rows at a time: neither logits nor probabilities of the whole batch ever
    exist. With compute.matmul of bfloat16 the operands of the head's products are rounded. With
    the head rounded to fp8, logits are of that where there are gradients; then no x may be longer
    than sqrt(D).
    """
    mask = mask.astype(jnp.float32)
    factor = mask if weights is None else mask * weights.astype(jnp.float32)
    dtype = jnp.dtype(jnp.bfloat16 if compute.matmul == "bfloat16" else x.dtype)
    narrow = compute.fused and x.dtype == dtype == jnp.bfloat16
    chunk = max(1, compute.chunk_rows // x.shape[0])
    how = _Head(softcap, chunk, dtype, narrow, compute.native)
    total = _weighted_nll(how, x, kernel, rounded, targets, lax.stop_gradient(factor))
    return total, jnp.sum(mask)


def token_logprobs(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    *,
    softcap: float,
    chunk_rows: int = PLAIN.chunk_rows,
) -> Float32[Array, "B T"]:
    """log p(target) in nats, from features x and the head."""

    head = kernel.astype(x.dtype)

    def one(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
        return None, -_nll(*chunk, head, softcap)[0]

    size = max(1, chunk_rows // x.shape[0])
    _, logprobs = lax.scan(one, None, (_chunks(x, size), _chunks(targets, size)))
    return _whole(logprobs, x.shape[1])


def bits_per_byte(nats: float, size: float) -> float:
    """Bits per byte of text, from summed nats and bytes. Raises ValueError for no bytes."""
    if not size:
        raise ValueError("bits per byte are not defined for no bytes")
    return nats / size / math.log(2.0)


def _chunks(x: Array, size: int) -> Array:
    """[B,T,...] -> [N,B,size,...]; the last chunk is filled up with zeros.

    Cut along time, so that rows split over devices stay where they are.
    """
    batch, time = x.shape[:2]
    count = -(-time // size)
    size = -(-time // count)  # equal chunks waste less
    x = jnp.pad(x, ((0, 0), (0, count * size - time), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)


def _whole(chunks: Array, time: int) -> Array:
    """[N,B,size,...] -> [B,T,...], the inverse of `_chunks`."""
    x = jnp.moveaxis(chunks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def _nll(
    x: Array, targets: Array, head: Array, softcap: float
) -> tuple[Array, Array, Array, Array]:
    """-log p(target) [...], then what the gradient needs: tanh, exp(logits - cap), their sum.

    x [...,D] and head [D,V] in the dtype they are multiplied in.
    """
    logits = jnp.matmul(x, head, preferred_element_type=jnp.float32)
    tanh = jnp.tanh(logits / softcap)
    exp = jnp.exp(softcap * (tanh - 1.0))
    total = jnp.sum(exp, axis=-1)
    hit = softcap * jnp.take_along_axis(tanh, targets[..., None], axis=-1)[..., 0]
    return jnp.log(total) + softcap - hit, tanh, exp, total


def _chunk_gradient(
    rows: Float[Array, "N D"],
    targets: Int[Array, " N"],
    factor: Float32[Array, " N"],
    head: Float[Array, "D V"],
    softcap: float,
) -> tuple[Float32[Array, " N"], Float[Array, "N V"]]:
    """-log p(target) of features, and factor times its gradient by the logits."""
    nll, tanh, exp, total = _nll(rows, targets, head, softcap)
    hit = _hit(targets, head)
    grad = (factor / total)[:, None] * exp - jnp.where(hit, factor[:, None], 0.0)
    return nll, (grad * (1.0 - tanh * tanh)).astype(head.dtype)


def _narrow_gradient(
    logits: Float[Array, "N V"],
    targets: Int[Array, " N"],
    factor: Float32[Array, " N"],
    softcap: float,
) -> tuple[Float32[Array, " N"], Float32[Array, "N V"]]:
    """`_chunk_gradient` from logits that are rounded to bfloat16, as nanochat's are, and then read
    twice, each time by one kernel: the sum of exponentials, then the gradient.
    """

    def capped(logits: Array) -> tuple[Array, Array]:
        """q with 1 - tanh(logits / softcap) = 2 q, and exp(capped logits - cap)."""
        q = 1.0 / (1.0 + jnp.exp(logits.astype(jnp.float32) * (2.0 / softcap)))
        return q, jnp.exp(-2.0 * softcap * q)

    # Behind barriers, as XLA would otherwise write what both passes need in float32
    logits = lax.optimization_barrier(logits)
    total = jnp.sum(capped(logits)[1], axis=-1)
    missed, _ = capped(jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0])
    nll = jnp.log(total) + 2.0 * softcap * missed
    logits, total, factor = lax.optimization_barrier((logits, total, factor))
    q, exp = capped(logits)
    hit = jnp.where(_hit(targets, logits), factor[:, None], 0.0)
    return nll, ((factor / total)[:, None] * exp - hit) * (4.0 * q * (1.0 - q))


def _hit(targets: Int[Array, " N"], logits: Float[Array, "_ V"]) -> Bool[Array, "N V"]:
    """Where each row's target is."""
    return targets[:, None] == jnp.arange(logits.shape[1], dtype=targets.dtype)[None, :]


class _Head(NamedTuple):
    """How logits are computed."""

    softcap: float
    chunk: int  # positions of every row at once
    dtype: np.dtype[Any]  # of the operands
    narrow: bool  # logits in `dtype` where there are gradients: see `_narrow_gradient`
    native: bool  # the gradient by the logits by a kernel of our own


def _narrow_logits(
    how: _Head, rows: Array, head: Array, rounded: fp8.Kernel | None
) -> Float[Array, "N V"]:
    """Logits of features [N,D], before they are capped, in how.dtype."""
    if rounded is None:
        return jnp.matmul(rows, head, preferred_element_type=rows.dtype)
    q = fp8.quantize(rows, fp8.E4M3, math.sqrt(rows.shape[-1]))
    return fp8.product(q, rounded.rounded, (1, 0), how.dtype, lax.Precision.DEFAULT)


def _chunk_gradients(
    how: _Head,
    rows: Array,
    targets: Array,
    factor: Array,
    head: Array,
    rounded: fp8.Kernel | None,
) -> tuple[Float32[Array, " N"], Float[Array, "N D"], Float32[Array, "D V"]]:
    """-log p(target) of features [N,D], and the gradients of factor times it by them and the
    head's kernel.

    These are not products of fp8 where the logits are: the gradient of a kernel is a sum over all
    tokens of probabilities that are much the same for each, and so are their rounding errors.
    """
    if rounded is not None or how.narrow:
        logits = _narrow_logits(how, rows, head, rounded)
        nll, grad = _narrow_gradient(logits, targets, factor, how.softcap)
        grad = lax.optimization_barrier(grad.astype(head.dtype))
    elif how.native:
        logits = jnp.matmul(rows, head, preferred_element_type=jnp.float32)
        nll, grad = native.loss_gradient(logits, targets, factor, how.softcap)
    else:
        nll, grad = _chunk_gradient(rows, targets, factor, head, how.softcap)
    x_grad = dot(grad, head, over=(-1, -1), dtype=how.dtype)
    return nll, x_grad, dot(rows, grad, over=(-2, -2), dtype=how.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_nll(
    how: _Head, x: Array, kernel: Array, rounded: fp8.Kernel | None, targets: Array, factor: Array
) -> Array:
    """Sum of factor * -log p(target); see `cross_entropy`."""
    del rounded
    rows = how.chunk * x.shape[0]
    x = x.astype(how.dtype)
    logprobs = token_logprobs(x, kernel, targets, softcap=how.softcap, chunk_rows=rows)
    return jnp.sum(factor * -logprobs)


def _forward(
    how: _Head, x: Array, kernel: Array, rounded: fp8.Kernel | None, targets: Array, factor: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The value, and the gradients as they are for a cotangent of 1."""
    head = kernel.astype(how.dtype)

    def one(
        carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        value, kernel_grad = carry
        x, *labels = inputs
        rows = x.reshape(-1, x.shape[-1]).astype(how.dtype)
        targets, factor = (label.reshape(-1) for label in labels)
        nll, x_grad, one_grad = _chunk_gradients(how, rows, targets, factor, head, rounded)
        x_grad, kernel_grad = x_grad.astype(x.dtype), kernel_grad + one_grad
        return (value + jnp.sum(factor * nll), kernel_grad), x_grad.reshape(x.shape)

    start = (jnp.zeros((), jnp.float32), jnp.zeros(kernel.shape, jnp.float32))
    inputs = (_chunks(x, how.chunk), _chunks(targets, how.chunk), _chunks(factor, how.chunk))
    (value, kernel_grad), x_grad = lax.scan(one, start, inputs)
    return value, (_whole(x_grad, x.shape[1]), kernel_grad.astype(kernel.dtype))


def _backward(
    how: _Head, grads: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array, None, None, None]:
    """Scales what the forward pass computed."""
    del how
    x_grad, kernel_grad = grads
    scale = cotangent.astype(x_grad.dtype)
    return x_grad * scale, kernel_grad * cotangent.astype(kernel_grad.dtype), None, None, None


_weighted_nll.defvjp(_forward, _backward)
