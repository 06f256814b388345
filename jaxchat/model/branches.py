"""The network over rows that branch: many continuations of one beginning, which is computed once.

Axes: B batch, P positions of the trunk, R of all branches of a row, T = P + R, D width, H query
heads, G key/value heads, K head size.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxchat.config.derive import layer_specs
from jaxchat.config.schema import ModelConfig
from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.gpt import Params, apply
from jaxchat.model.rope import rope_table


def branch_features(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    branch: Int[Array, "B R"],
    positions: Int[Array, "B R"],
    config: ModelConfig,
    compute: Compute = PLAIN,
) -> Float[Array, "B T D"]:
    """Normalised features of `tokens`: a trunk [B,P] and behind it branches [B,R].

    Row b's trunk has lengths[b] >= 1 tokens, padded on the right. A branch token has the number of
    its branch in `branch` and its place in the text in `positions`; it sees the trunk and what is
    before it in its own branch. Where the number is negative no other token sees it.

    With smear, a token mixes with the one that stands before it in `tokens`: so each branch must
    have the trunk's last token before it, with a negative number.
    """
    time = tokens.shape[1] - branch.shape[1]
    specs = layer_specs(config)

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, None]:
        window = specs[layer].window
        parts = (x[:, :time] for x in (q, k, v))
        trunk = causal_attention(*parts, window=window, implementation=compute.attention)
        visible = _visible(lengths, branch, positions, time, window)
        return jnp.concatenate([trunk, _branch_attention(q[:, time:], k, v, visible)], axis=1), None

    trunk = jnp.arange(time, dtype=positions.dtype)
    trunk = jnp.broadcast_to(trunk, (tokens.shape[0], time))
    where = jnp.concatenate([trunk, positions], axis=1)
    rope = rope_table(where, config, compute.dtype)
    return apply(params, tokens, rope, None, attend, config, compute)[0]


def _visible(
    lengths: Int[Array, " B"],
    branch: Int[Array, "B R"],
    positions: Int[Array, "B R"],
    time: int,
    window: int,
) -> Bool[Array, "B R T"]:
    """Which keys a branch token sees."""
    trunk = jnp.arange(time, dtype=positions.dtype)[None, None, :]
    back = positions[:, :, None] - trunk
    sees_trunk = (trunk < lengths[:, None, None]) & (back <= window)
    order = jnp.arange(branch.shape[1], dtype=positions.dtype)
    causal = (order[:, None] >= order[None, :])[None]
    back = positions[:, :, None] - positions[:, None, :]
    # Tokens without a branch see each other, so that their softmax is over something.
    own = (branch[:, :, None] == branch[:, None, :]) & causal & (back <= window)
    return jnp.concatenate([sees_trunk, own], axis=2)


def _branch_attention(
    q: Float[Array, "B R H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    visible: Bool[Array, "B R T"],
) -> Float[Array, "B R H K"]:
    """Scores are bounded (see `model.attention`): no maximum is subtracted."""
    batch, rows, heads, size = q.shape
    groups = k.shape[2]
    q = q * jnp.asarray(size**-0.5, q.dtype)
    q = q.reshape(batch, rows, groups, heads // groups, size)
    scores = jnp.einsum("brghk,btgk->bghrt", q, k, preferred_element_type=jnp.float32)
    weights = jnp.where(visible[:, None, None], jnp.exp(scores), 0.0)
    total = jnp.sum(weights, axis=-1)
    y = jnp.einsum(
        "bghrt,btgk->brghk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    y = y / total.transpose(0, 3, 1, 2)[..., None]
    return y.reshape(batch, rows, heads, size).astype(q.dtype)
