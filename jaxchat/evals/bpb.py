"""Bits per byte: the loss in bits over the bytes the predicted tokens stand for.

It does not depend on the tokenizer, so models with different vocabularies can be compared. Special
tokens (0 bytes) and masked ones count neither above nor below.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxchat import losses
from jaxchat.config import ModelConfig
from jaxchat.model import gpt


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def _sums(
    params: Any, batch: dict[str, jax.Array], token_bytes: jax.Array, model: ModelConfig,
    dtype: DTypeLike,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """(nats, bytes) summed over a batch of rows [B, T+1] and mask [B, T+1]."""
    tokens, targets = batch["tokens"], batch["tokens"][:, 1:]
    size = token_bytes[targets].astype(jnp.float32) * batch["mask"][:, 1:]
    counted = (size > 0).astype(jnp.float32)
    x = gpt.features(params, tokens[:, :-1], model, dtype=dtype)
    kernel = params["lm_head"]["kernel"]
    nats, _ = losses.cross_entropy(x, kernel, targets, counted, softcap=model.softcap)
    return nats, jnp.sum(size)


def bits_per_byte(
    params: Any,
    batches: Iterable[dict[str, Any]],
    token_bytes: np.ndarray,
    model: ModelConfig,
    dtype: DTypeLike = jnp.float32,
) -> float:
    """Bits per byte over batches of `tokens` and `mask`, each [B, T+1].

    `token_bytes` [V] is the number of bytes of each token, 0 for special ones. NaN when no byte is
    predicted at all.
    """
    sizes = jnp.asarray(token_bytes, jnp.int32)
    sums = [_sums(params, batch, sizes, model, dtype) for batch in batches]
    nats = math.fsum(float(n) for n, _ in sums)
    size = math.fsum(float(b) for _, b in sums)
    return losses.bits_per_byte(nats, size)
