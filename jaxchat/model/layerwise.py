"""A step of decoding in parts: the embedding, one layer after the other, the logits.

As one program (`gpt.decode`) a step is fastest, but XLA compiles each of its layers anew. As parts,
layers that are alike share a program, so a first answer comes sooner. The formulas are the same.

Axes: B batch, D width, V vocabulary, G key/value heads, K head size, S slots of a layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from jaxchat.config.derive import SMEAR_GATE_CHANNELS, layer_specs
from jaxchat.config.schema import ModelConfig
from jaxchat.model.backend import Compute
from jaxchat.model.gpt import ROUNDED, Block, Params, rms_norm, unembed
from jaxchat.model.kernels.cached import cached_attention
from jaxchat.model.kv_cache import View, view_of, write


class Start(NamedTuple):
    """What a step begins with."""

    x: Float[Array, "B 1 D"]  # the residual
    embedded: Float[Array, "B 1 D"]  # before smear
    view: View


class Parts(NamedTuple):
    """A model's parameters, as the parts of a step take them."""

    embedding: Params
    layers: tuple[Params, ...]
    head: Params


def parts_of(params: Params, config: ModelConfig) -> Parts:
    """The parameters of each part; none is copied."""

    def picked(*names: str) -> Params:
        return {name: params[name] for name in names if name in params}

    scales, layers = picked("resid_lambdas", "x0_lambdas"), []
    for layer, spec in enumerate(layer_specs(config)):
        table = {"table": params[f"value_embeds_{layer}"]} if spec.value_embedding else {}
        layers.append({"block": params[f"h_{layer}"], **scales, **table})
    embedding = picked("wte", "smear_gate", "smear_lambda")
    head = picked("lm_head", "backout_lambda")
    return Parts(embedding, tuple(layers), head)


def start(
    params: Params,
    tokens: Int[Array, " B"],
    position: Int[Array, " B"],
    previous: Float[Array, "B D"],
    slots: tuple[int, ...],
    config: ModelConfig,
    compute: Compute,
) -> Start:
    """The embedding of tokens at `position`, in a cache with `slots` in each layer; `previous` is
    the embedding before.
    """
    dtype = compute.dtype
    embedded = rms_norm(_row(params["wte"], tokens, compute), config, compute)
    x = embedded
    if config.smear:
        column = params["smear_gate"]["kernel"].astype(dtype).reshape(1, 1, -1)
        channels = x[..., : min(SMEAR_GATE_CHANNELS, config.n_embd)]
        gate = jax.nn.sigmoid(jnp.sum(channels * column, axis=-1, keepdims=True))
        gate = params["smear_lambda"].astype(compute.scalars) * gate
        x = (x + gate * previous[:, None].astype(dtype)).astype(dtype)
    return Start(x, embedded, view_of(position, slots, config, dtype))


def layer(
    params: Params,
    number: Int[Array, ""],
    x: Float[Array, "B 1 D"],
    start: Start,
    kept: tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]],
    tokens: Int[Array, " B"],
    position: Int[Array, " B"],
    config: ModelConfig,
    compute: Compute,
) -> tuple[Float[Array, "B 1 D"], tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]]:
    """The residual after a layer, and the keys and values that are kept of it.

    `start.view.visible` has this layer's alone.
    """
    dtype, store = compute.dtype, kept[0].dtype
    if config.residual_scalars:
        share, first = (
            params[name].astype(compute.scalars)[number] for name in ("resid_lambdas", "x0_lambdas")
        )
        x = share * x + first * start.x
    value = _row(params["table"], tokens, compute) if "table" in params else None
    (visible,) = start.view.visible

    def attend(_: int, q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        new = zip(kept, (k, v), strict=True)
        keys, values = (write(old, each[:, 0].astype(store), position) for old, each in new)
        y = cached_attention(q[:, 0], keys.astype(dtype), values.astype(dtype), visible)
        return y[:, None], (keys, values)

    block, variables = Block(config, 0, compute), {"params": params["block"], ROUNDED: {}}
    result: Any = block.apply(variables, x, value, start.view.rope, attend)
    return result  # type: ignore[no-any-return]


def logits(
    params: Params,
    x: Float[Array, "B 1 D"],
    middle: Float[Array, "B 1 D"],
    config: ModelConfig,
    compute: Compute,
) -> Float32[Array, "B V"]:
    """The logits; `middle` is the residual after `middle_layer`."""
    if config.backout:
        x = x - params["backout_lambda"].astype(compute.scalars) * middle
    return unembed(params, rms_norm(x, config, compute)[:, 0], config, compute)


def _row(table: Params, tokens: Int[Array, " B"], compute: Compute) -> Float[Array, "B 1 D"]:
    rows: Array = table["embedding"][tokens[:, None]]
    return rows.astype(compute.dtype)
