"""Causal attention, whole rows at a time: training and prefill. Decoding's is `kernels.cached`.

Axes: B batch, T time, S keys, H query heads, G key/value heads, K head size.

Queries and keys are RMS-normalised before they come here, so a score is at most sqrt(K) times
qk_scale squared: exp() of it fits in float32 and our own kernels subtract no maximum first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxchat.model.backend import Implementation
from jaxchat.model.kernels.banded import banded_attention
from jaxchat.model.kernels.blocked import blocked_attention
from jaxchat.model.kernels.native import native_attention
from jaxchat.model.kernels.splash import splash_attention, takes

MAX_SCORE = 80.0  # exp(80) summed over a context is still finite in float32
KERNELS = {
    "blocked": blocked_attention,
    "banded": banded_attention,
    "native": native_attention,
    "splash": splash_attention,
}


def causal_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    window: int,
    implementation: Implementation = "blocked",
) -> Float[Array, "B T H K"]:
    """Each query sees its own key and `window` keys to its left.

    The result has q's dtype. "xla" is the plain formula and runs anywhere; "cudnn" needs a GPU and
    half precision; "splash" needs a TPU, and is "xla" for shapes that its kernel does not take;
    "blocked", "banded" and "native" are made for a CPU, the latter two with operands of bfloat16;
    "native" needs AVX-512 BF16 and heads of a multiple of 32.
    """
    length, size = q.shape[1], q.shape[3]
    if implementation == "splash" and not takes(length, size):
        implementation = "xla"
    kernel = implementation if callable(implementation) else KERNELS.get(implementation)
    if kernel is not None:
        return kernel(q, k, v, window=window)
    if implementation == "cudnn" and length % 2:  # it takes even lengths alone; none sees the last
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    y = jax.nn.dot_product_attention(
        q,
        k,
        v,
        # is_causal is needed beside the window: without it, cudnn attends to the future
        # (jax pull request 39576)
        is_causal=True,
        local_window_size=None if window >= q.shape[1] - 1 else (window, 0),
        implementation=implementation,  # type: ignore[arg-type]
    )
    return y[:, :length]
