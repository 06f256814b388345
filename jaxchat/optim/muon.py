"""Muon as small Optax transforms over trees of matrices.

A kernel is [in, out] (or a stack [..., in, out]), the transpose of the papers' and PyTorch's
[out, in]: "row" below means an output neuron, that is a column of our kernel, axis -1.

Sources: Muon (Keller Jordan, kellerjordan.github.io/posts/muon), Polar Express
(arXiv 2505.16932), NorMuon (arXiv 2510.05491), MuonEq (arXiv 2603.28254), Muon+
(arXiv 2602.21545); the combination and its order as in nanochat.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Int

from jaxchat.model.kernels import native
from jaxchat.model.kernels.matmul import dot, transposed
from jaxchat.optim.schedule import Schedule

Coefficients = Sequence[tuple[float, float, float]]
Matrices = Float[Array, "*stack M N"]

# Keller Jordan's quintic, five times: it maximises the slope at zero.
NEWTON_SCHULZ: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
# Polar Express for five iterations (safety factor 2e-2, cushion 2), from the paper.
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class MomentumState(NamedTuple):
    """Steps taken and the running mean of gradients."""

    steps: Int[Array, ""]
    momentum: Any


def nesterov_momentum(momentum: Schedule) -> optax.GradientTransformationExtraArgs:
    """An exponential mean of the gradients, looked ahead once more with the newest one."""

    def init(params: Any) -> MomentumState:
        return MomentumState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: Any, state: MomentumState, params: Any = None, *, given: Any = None, **_: Any
    ) -> tuple[Any, MomentumState]:
        del params
        beta = momentum(state.steps, given)
        mean = jax.tree.map(lambda m, g: m + (1 - beta) * (g - m), state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: g + beta * (m - g), mean, grads)
        return ahead, MomentumState(state.steps + 1, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def _norm(x: Matrices, axis: int | tuple[int, ...]) -> Float32[Array, "*stack _ _"]:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axis, keepdims=True))


def _equilibrate(x: Matrices) -> Matrices:
    target = _norm(x, (-2, -1)) / jnp.sqrt(x.shape[-1])
    return x * (target / jnp.maximum(_norm(x, -2), 1e-6)).astype(x.dtype)


def equilibrate_rows() -> optax.GradientTransformation:
    """Scales each output neuron's row to the mean row norm: a better conditioned spectrum."""
    return optax.stateless(lambda updates, _: jax.tree.map(_equilibrate, updates))


def orthogonalize_matrix(
    x: Matrices, coefficients: Coefficients, dtype: DTypeLike, slack: float, eps: float
) -> Matrices:
    """Brings every singular value near 1 by odd polynomials of degree 5.

    x is first divided by its Frobenius norm times `slack`, plus `eps`: the slack keeps the largest
    singular value below 1 in low precision too. The result has x's dtype. What is multiplied is
    rounded to `dtype`, sums are float32.
    """
    tall = x.shape[-2] > x.shape[-1]
    y = (x / (_norm(x, (-2, -1)) * slack + eps)).astype(dtype)
    y = transposed(y) if tall else y  # the smaller of the two Gram matrices is enough
    plain, narrow = (functools.partial(f, coefficients) for f in (_iterate, _iterate_narrow))
    if jnp.dtype(dtype) == jnp.bfloat16:
        own = functools.partial(_iterate_native, coefficients)
        own = own if native.takes_products(*y.shape[-2:]) else plain
        y = jax.lax.platform_dependent(y, cpu=own, cuda=narrow, default=plain)
    else:
        y = plain(y)
    return (transposed(y) if tall else y).astype(x.dtype)


def _iterate(coefficients: Coefficients, y: Matrices) -> Matrices:
    """y <- a y + (b G + c G^2) y with G = y y^T, for each (a, b, c)."""
    dtype = y.dtype
    product = functools.partial(dot, dtype=dtype)
    for a, b, c in coefficients:
        gram = product(y, y, over=(-1, -1))
        narrow = gram.astype(dtype)  # itself symmetric
        poly = b * gram + c * product(narrow, narrow, over=(-1, -1))
        y = (a * y.astype(jnp.float32) + product(poly, y)).astype(dtype)
    return y


def _iterate_native(coefficients: Coefficients, y: Matrices) -> Matrices:
    """`_iterate` by a kernel of our own."""
    stack = y.reshape(-1, *y.shape[-2:])
    return native.orthogonalize(stack, coefficients).reshape(y.shape)


def _iterate_narrow(coefficients: Coefficients, y: Matrices) -> Matrices:
    """`_iterate` with fewer bytes where these take time: y <- (a I + b G + c G^2) y.

    What products give is rounded at once, and no pass over y is left. Rounding a I + b G + c G^2
    scales rows by 1 +- 2^-9, which the next iteration mends: it is as near to float32.
    """
    dtype = y.dtype

    def product(p: Array, q: Array, over: tuple[int, int] = (-1, -2)) -> Array:
        # Behind a barrier, as XLA would keep the float32 for those who read it as such
        rounded: Array = jax.lax.optimization_barrier(
            dot(p, q, over=over, dtype=dtype).astype(dtype)
        )
        return rounded

    identity = jnp.broadcast_to(jnp.eye(y.shape[-2]), (*y.shape[:-1], y.shape[-2]))
    for a, b, c in coefficients:
        gram = product(y, y, (-1, -1))  # itself symmetric
        square = product(gram, gram, (-1, -1))
        poly = a * identity + b * gram.astype(jnp.float32) + c * square.astype(jnp.float32)
        y = product(poly, y)
    return y


def orthogonalize(
    coefficients: Coefficients,
    dtype: DTypeLike = jnp.float32,
    *,
    slack: float = 1.0,
    eps: float = 1e-7,
) -> optax.GradientTransformation:
    """Replaces each matrix by a nearly orthogonal one; those of a shape are done as one stack.

    Leaves may be stacks already, [..., in, out].
    """

    def update(updates: Any, _: Any) -> Any:
        leaves, tree = jax.tree.flatten(updates)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, leaf in enumerate(leaves):
            by_shape.setdefault(leaf.shape[-2:], []).append(index)
        for matrix, indices in by_shape.items():
            # one batch axis: with two, XLA's products on a CPU take half as long again
            flat = [leaves[index].reshape(-1, *matrix) for index in indices]
            stack = orthogonalize_matrix(jnp.concatenate(flat), coefficients, dtype, slack, eps)
            start = 0
            for index, part in zip(indices, flat, strict=True):
                leaves[index] = stack[start : start + len(part)].reshape(leaves[index].shape)
                start += len(part)
        return jax.tree.unflatten(tree, leaves)

    return optax.stateless(update)


def _renormalize(x: Matrices) -> Matrices:
    target = math.sqrt(min(x.shape[-2:]))
    return x * (target / jnp.maximum(_norm(x, (-2, -1)), 1e-6)).astype(x.dtype)


def renormalize() -> optax.GradientTransformation:
    """Sets the Frobenius norm to that of an exactly semi-orthogonal matrix, sqrt(min(m, n))."""
    return optax.stateless(lambda updates, _: jax.tree.map(_renormalize, updates))


class NorMuonState(NamedTuple):
    """Running mean square of each neuron's update."""

    second: Any


def _neuron_axis(shape: tuple[int, ...]) -> int:
    # The papers' [out, in] reduces over `in` when out >= in; our [in, out] mirrors that.
    return -2 if shape[-1] >= shape[-2] else -1


def normuon(beta2: float) -> optax.GradientTransformation:
    """Divides each neuron by its running root mean square, keeping the matrix's norm."""

    def init(params: Any) -> NorMuonState:
        def zeros(p: jax.Array) -> jax.Array:
            return jnp.zeros_like(jnp.sum(p, axis=_neuron_axis(p.shape), keepdims=True))

        return NorMuonState(jax.tree.map(zeros, params))

    def update(updates: Any, state: NorMuonState, params: Any = None) -> tuple[Any, NorMuonState]:
        del params

        def mean_square(g: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(g), axis=_neuron_axis(g.shape), keepdims=True)

        means = jax.tree.map(mean_square, updates)
        second = jax.tree.map(lambda v, m: v + (1 - beta2) * (m - v), state.second, means)

        def scale(g: jax.Array, mean: jax.Array, v: jax.Array) -> jax.Array:
            step = jax.lax.rsqrt(jnp.maximum(v, 1e-10))
            before = jnp.sqrt(jnp.sum(mean, axis=(-2, -1), keepdims=True))
            after = jnp.sqrt(jnp.sum(mean * jnp.square(step), axis=(-2, -1), keepdims=True))
            size = math.sqrt(g.shape[_neuron_axis(g.shape)])
            return g * step * (size * before / jnp.maximum(size * after, 1e-10))

        return jax.tree.map(scale, updates, means, second), NorMuonState(second)

    return optax.GradientTransformation(init, update)


def scale_by_shape() -> optax.GradientTransformation:
    """Multiplies by max(1, out / in) ** 0.5, so that the rate fits matrices of every shape."""

    def scale(x: jax.Array) -> jax.Array:
        return x * math.sqrt(max(1.0, x.shape[-1] / x.shape[-2]))

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


class DecayState(NamedTuple):
    """Steps taken."""

    steps: Int[Array, ""]


def decoupled_decay(decay: Schedule, cautious: bool) -> optax.GradientTransformationExtraArgs:
    """Adds decay * parameter; when `cautious`, only where the update shrinks the parameter.

    Stands before `scale_by_shape` and the rate, which then multiply update and decay alike.
    """

    def init(params: Any) -> DecayState:
        del params
        return DecayState(jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: DecayState, params: Any = None, *, given: Any = None, **_: Any
    ) -> tuple[Any, DecayState]:
        rate = decay(state.steps, given)

        def add(g: jax.Array, p: jax.Array) -> jax.Array:
            decayed = rate * p
            return g + (jnp.where(g * p >= 0, decayed, 0.0) if cautious else decayed)

        return jax.tree.map(add, updates, params), DecayState(state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)
