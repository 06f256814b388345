"""The training step: a pure function of state and batch, jitted once with donated state.

Axes: A accumulation, B rows, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxchat import losses
from jaxchat.config import ConfigError, ModelConfig
from jaxchat.model import gpt
from jaxchat.model.attention import Implementation, choose_attention
from jaxchat.sharding import RULES, replicated, sharding

Params = Any
Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything a step changes."""

    params: Params
    opt_state: Any
    step: jax.Array  # int32 []


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0."""
    return TrainState(params, optimizer.init(params), jnp.zeros([], jnp.int32))


def batch_loss(
    params: Params,
    batch: Batch,
    model: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    attention: Implementation = "blocked",
) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the loss over rows [B, T+1]; the caller divides once.

    `batch` holds `tokens` [B, T+1], `mask` [B, T+1] (1 where the token is predicted and counted)
    and optionally `advantage` [B], which multiplies each row's loss but not its weight.
    """
    tokens, mask = batch["tokens"], batch["mask"][:, 1:]
    weights = None
    if "advantage" in batch:
        weights = jnp.broadcast_to(batch["advantage"][:, None], mask.shape)
    x = gpt.features(params, tokens[:, :-1], model, dtype=dtype, attention=attention)
    return losses.cross_entropy(
        x, params["lm_head"]["kernel"], tokens[:, 1:], mask, softcap=model.softcap, weights=weights
    )


def loss_and_grads(
    params: Params,
    batch: Batch,
    model: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    attention: Implementation = "blocked",
) -> tuple[Params, jax.Array, jax.Array]:
    """Sums over the A micro-batches of [A, B, ...]: gradients, loss, weight. Nothing is divided."""

    def one(micro: Batch) -> tuple[Params, jax.Array, jax.Array]:
        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            return batch_loss(params, micro, model, dtype, attention)

        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, total, weight

    if batch["tokens"].shape[0] == 1:
        return one(jax.tree.map(lambda x: x[0], batch))

    def add(carry: Any, micro: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, one(micro)), None

    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros([]), jnp.zeros([]))
    sums, _ = lax.scan(add, zeros, batch)
    return sums


def make_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step over a mesh: rows are split over the batch axes, parameters replicated.

    Gradients are summed on each device over its micro-batches and reduced once. The batch is
    [A, B, ...] as `sharding.put_batch` lays it out. Metrics: `loss` (mean over weight), `weight`
    and `grad_norm`.
    """
    if mesh.shape["tensor"] != 1:
        raise ConfigError(f"mesh.tensor is {mesh.shape['tensor']}; this version supports only 1.")
    axes = RULES["batch"]
    attention = choose_attention(model.head_dim, dtype)

    def local(params: Params, batch: Batch) -> tuple[Params, jax.Array, jax.Array]:
        sums: tuple[Params, jax.Array, jax.Array] = lax.psum(
            loss_and_grads(params, batch, model, dtype, attention), axes
        )
        return sums

    over_mesh = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(None, axes)), out_specs=P(), check_vma=False
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, total, weight = over_mesh(state.params, batch)
        # A batch without a counted token is harmless: its gradients are zero.
        scale = 1.0 / jnp.maximum(weight, 1.0)
        grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": total * scale,
            "weight": weight,
            "grad_norm": optax.tree.norm(grads),
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), sharding(mesh, "accumulation", "batch")),
        out_shardings=replicated(mesh),
    )
