"""Causal attention on a TPU, in the kernel of splash attention that comes with JAX.

Axes: B batch, T time, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

import jax
from jax import Array
from jaxtyping import Float

MULTIPLE = 128  # of T and K: the lanes of a TPU's vectors
MAX_BLOCK = 512  # of queries and of keys


def takes(time: int, size: int) -> bool:
    """Whether the kernel takes rows of `time` tokens and heads of `size`."""
    return time % MULTIPLE == 0 and size % MULTIPLE == 0


def splash_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    window: int,
    interpret: bool = False,
) -> Float[Array, "B T H K"]:
    """`causal_attention` for the shapes that `takes` accepts; scores never leave the chip.

    Blocks that no query sees are skipped. `interpret` runs the kernel on any backend, slowly.
    """
    # Loads Pallas for TPUs, for which a program on another device has no use
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, time, heads, size = q.shape
    full = window >= time - 1
    mask = (
        splash.CausalMask((time, time)) if full else splash.LocalMask((time, time), (window, 0), 0)
    )
    block = next(b for b in range(MAX_BLOCK, 0, -MULTIPLE) if time % b == 0)
    kernel = splash.make_splash_mha(
        mask=splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        head_shards=1, q_seq_shards=1, interpret=interpret,
    )  # fmt: skip
    q, k, v = (x.swapaxes(1, 2) for x in (q * size**-0.5, k, v))
    y: Array = jax.vmap(kernel)(q, k, v)
    return y.swapaxes(1, 2)
