"""Rotary position embeddings: pairs of channels turned by an angle that grows with the position.

Axes: B batch, T time, H heads, K head size, C = K/2 pairs of channels. Source: RoFormer (arXiv
2104.09864), with nanochat's pairs (the first half with the second) and direction.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxchat.config.schema import ModelConfig

Rope = tuple[Float[Array, "#B T 1 C"], Float[Array, "#B T 1 C"]]  # cosines and sines


def rotary(positions: Int[Array, "B T"], size: int, base: float, dtype: DTypeLike) -> Rope:
    """Cosines and sines for positions, with heads of `size`."""
    frequency = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def rope_table(positions: Int[Array, "B T"], config: ModelConfig, dtype: DTypeLike) -> Rope:
    """`rotary` of a model."""
    return rotary(positions, config.head_dim, config.rope_base, dtype)


def rotate(
    x: Float[Array, "B T H K"], cos: Float[Array, "#B T 1 C"], sin: Float[Array, "#B T 1 C"]
) -> Float[Array, "B T H K"]:
    """Rotates x pairwise, first half with second half, by minus the angle."""
    # The halves as an axis that is flipped: XLA on a CPU joins two halves element by element.
    halves = x.reshape(*x.shape[:-1], 2, -1)
    cos, sin = cos[..., None, :], jnp.stack([sin, -sin], axis=-2)
    return (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x.shape)
