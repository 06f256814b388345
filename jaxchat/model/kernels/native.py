"""Attention and other parts of a step by kernels of our own (Rust), called through XLA's FFI.

They are for a processor with AVX-512 BF16, and compute what `kernels.banded`, `kernels.norms` and
`model.loss` write for XLA, with the same roundings: operands of products are bfloat16, sums
float32. XLA makes of attention many small products with copies and masks between, of the loss
several passes over logits, and of what lies between products as many passes over rows; here it is
done while it is in a core's cache, and keys that a query does not see cost nothing. Results are the
same to the last bit for any number of threads. Products of layers have kernels where there is AMX.

XLA cannot split such a call over devices, so it belongs on one, or within a `shard_map`.

Axes: B batch, T time, H query heads, G key/value heads, K head size, N rows, V vocabulary,
C = K/2 pairs of channels; of layers D width, F hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import BFloat16, Float, Float32, Int32

from jaxchat import _bpe

MULTIPLE = 32  # of head sizes, widths and hidden sizes
UNIT = 64  # rows of `mlp` that one thread takes at once, as in bpe_rs/src/mlp.rs


@functools.cache
def able() -> bool:
    """Whether this processor has the kernels; makes them known to XLA."""
    handlers = _bpe.bfloat16_kernels()
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return bool(handlers)


@functools.cache
def multiplies() -> bool:
    """Whether this processor has the kernels of products, too, which are for AMX."""
    return able() and "jaxchat_linear" in _bpe.bfloat16_kernels()


def takes(size: int) -> bool:
    """Whether heads of this size are attended to here."""
    return size % MULTIPLE == 0 and able()


def takes_products(*sides: int) -> bool:
    """Whether products with matrices of these sides are done here."""
    return all(side % (2 * MULTIPLE) == 0 for side in sides) and multiplies()


def native_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    window: int,
) -> Float[Array, "B T H K"]:
    """Each query sees its own key and `window` keys to its left. The result has q's dtype."""
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    return _attend(min(window, q.shape[1]), q, k, v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window: int, q: Array, k: Array, v: Array) -> Array:
    return _forward(window, q, k, v)[0]


def _forward(window: int, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    narrow = tuple(x.astype(jnp.bfloat16) for x in (q, k, v))
    batch, time, heads, _ = q.shape
    y, total = _call("attention", ((q.shape, jnp.float32), ((batch, heads, time), jnp.float32)))(
        *narrow, jnp.full(1, window, jnp.int32)
    )
    return y.astype(q.dtype), (*narrow, y, total)


def _backward(window: int, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    shapes = tuple((x.shape, jnp.float32) for x in saved[:3])
    grads = _call("attention_gradient", shapes)(
        *saved, dy.astype(jnp.float32), jnp.full(1, window, jnp.int32)
    )
    return tuple(grad.astype(dy.dtype) for grad in grads)


_attend.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_rope(
    x: Float32[Array, "B T H K"],
    cos: Float32[Array, "#B T 1 C"],
    sin: Float32[Array, "#B T 1 C"],
    factor: float,
    epsilon: float,
) -> Float32[Array, "B T H K"]:
    """factor * rms_norm(rotate(x, cos, sin)), with the norm taken of x, which a rotation leaves.

    There is no gradient with respect to cos and sin.
    """
    norm = jnp.asarray((factor, epsilon), jnp.float32)
    y: Array = _call("norm_rope", ((x.shape, jnp.float32),))(x, cos, sin, norm)[0]
    return y


def _norm_rope_forward(
    x: Array, cos: Array, sin: Array, factor: float, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    return norm_rope(x, cos, sin, factor, epsilon), (x, cos, sin)


def _norm_rope_backward(
    factor: float, epsilon: float, saved: tuple[Array, ...], dy: Array
) -> tuple[Array, None, None]:
    x, cos, sin = saved
    norm = jnp.asarray((factor, epsilon), jnp.float32)
    call = _call("norm_rope_gradient", ((x.shape, jnp.float32),))
    return call(x, dy, cos, sin, norm)[0], None, None


norm_rope.defvjp(_norm_rope_forward, _norm_rope_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(
    x: Float32[Array, "*rows D"],
    kernels: tuple[Float32[Array, "D _"], ...],
    epsilon: float | None = None,
) -> tuple[Float32[Array, "*rows _"], ...]:
    """x, normalised where there is an epsilon, times each of up to three kernels.

    By the roundings of `matmul.rounded_matmul`; sides of kernels are multiples of `MULTIPLE`.
    """
    return _linear_forward(x, kernels, epsilon)[0]


def _linear_forward(
    x: Array, kernels: tuple[Array, ...], epsilon: float | None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    rows, narrow = x.reshape(-1, x.shape[-1]), [k.astype(jnp.bfloat16) for k in kernels]
    columns = [k.shape[1] for k in kernels]
    shapes = [((len(rows), size), jnp.float32) for size in columns]
    shapes.append(((sum(columns), rows.shape[1]), jnp.bfloat16))
    *ys, _ = _call("linear", tuple(shapes))(rows, _epsilon(epsilon), *narrow)
    return tuple(y.reshape(*x.shape[:-1], -1) for y in ys), (rows, *narrow)


def _linear_backward(
    epsilon: float | None, saved: tuple[Array, ...], dys: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    rows, *narrow = saved
    width, columns = rows.shape[1], sum(k.shape[1] for k in narrow)
    filled = -(-len(rows) // UNIT) * UNIT
    shapes = [(x.shape, jnp.float32) for x in saved]
    room = ((columns, width), (width, filled), (columns, filled))
    shapes += [(sizes, jnp.bfloat16) for sizes in room]
    flat = [dy.reshape(len(rows), -1) for dy in dys]
    dx, *grads = _call("linear_gradient", tuple(shapes))(rows, _epsilon(epsilon), *narrow, *flat)
    return dx.reshape(*dys[0].shape[:-1], width), tuple(grads[: len(narrow)])


linear.defvjp(_linear_forward, _linear_backward)


def _epsilon(epsilon: float | None) -> Array:
    """As kernels take it: below 0 for no norm."""
    return jnp.full(1, -1.0 if epsilon is None else epsilon, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def mlp(
    x: Float32[Array, "*rows D"],
    up: Float32[Array, "D F"],
    down: Float32[Array, "F D"],
    epsilon: float,
) -> Float32[Array, "*rows D"]:
    """x + relu(norm(x) up)^2 down, by the roundings of `matmul.rounded_matmul`.

    D and F are multiples of `MULTIPLE`.
    """
    return _mlp_forward(x, up, down, epsilon)[0]


def _mlp_forward(
    x: Array, up: Array, down: Array, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    rows, matrices = x.reshape(-1, x.shape[-1]), [k.astype(jnp.bfloat16) for k in (up, down)]
    room = ((2, *up.shape), jnp.bfloat16)
    hidden = ((len(rows), up.shape[1]), jnp.float32)
    y, u, _ = _call("mlp", ((rows.shape, jnp.float32), hidden, room))(
        rows, *matrices, _epsilon(epsilon)
    )
    return y.reshape(x.shape), (rows, u, *matrices)


def _mlp_backward(epsilon: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    rows, u, up, down = saved
    filled = -(-len(rows) // UNIT) * UNIT
    width, hidden = up.shape
    shapes = [(x.shape, jnp.float32) for x in (rows, up, down)]
    shapes += [
        ((2, *sizes), jnp.bfloat16) for sizes in (up.shape, (width, filled), (hidden, filled))
    ]
    dx, dup, ddown, *_ = _call("mlp_gradient", tuple(shapes))(
        rows, u, dy.reshape(rows.shape), up, down, _epsilon(epsilon)
    )
    return dx.reshape(dy.shape), dup, ddown


mlp.defvjp(_mlp_forward, _mlp_backward)


def orthogonalize(
    y: BFloat16[Array, "N M K"], coefficients: Sequence[tuple[float, float, float]]
) -> BFloat16[Array, "N M K"]:
    """y <- a y + (b G + c G^2) y with G = y y^T, for each (a, b, c), of each matrix.

    By the roundings of `optim.muon`, whose iterations these are; sides are multiples of `MULTIPLE`.
    """
    result: Array = _call("orthogonalize", ((y.shape, jnp.bfloat16),))(
        y, jnp.asarray(coefficients, jnp.float32)
    )[0]
    return result


def loss_gradient(
    logits: Float32[Array, "N V"],
    targets: Int32[Array, " N"],
    factor: Float32[Array, " N"],
    softcap: float,
) -> tuple[Float32[Array, " N"], BFloat16[Array, "N V"]]:
    """-log p(target) by capped logits, 0 where `factor` is, and factor times its gradient."""
    shapes = (((logits.shape[0],), jnp.float32), (logits.shape, jnp.bfloat16))
    cap = jnp.full(1, softcap, jnp.float32)
    nll, grad = _call("loss", shapes)(logits, targets.astype(jnp.int32), factor, cap)
    return nll, grad


def _call(name: str, results: tuple[tuple[tuple[int, ...], Any], ...]) -> Any:
    """A kernel whose results have these shapes and types."""
    if not able():
        raise ValueError(
            "attention is native, but this processor has no AVX-512 BF16; use another, as "
            "model.capabilities.choose_attention does."
        )
    return jax.ffi.ffi_call(f"jaxchat_{name}", [jax.ShapeDtypeStruct(*one) for one in results])
