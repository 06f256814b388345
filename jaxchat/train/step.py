"""The training step: a pure function of state and batch, jitted once with donated state.

Axes: A accumulation, B rows, T time, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float32, Int32

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.kernels import fp8
from jaxchat.model.kernels.matmul import round_kernels
from jaxchat.model.loss import cross_entropy
from jaxchat.optim.optimizer import Optimizer
from jaxchat.optim.stacking import stack
from jaxchat.optim.zero import ZeroLayout
from jaxchat.parallel.mesh import put, replicated, sharding
from jaxchat.parallel.spmd import mesh_compute, over_rows, over_tensor

Params = Any
Batch = dict[str, jax.Array]
TINY = float(np.finfo(np.float32).tiny)  # the smallest number whose inverse is finite


class TrainState(NamedTuple):
    """Everything a step changes. The optimizer's state is that of the view of `optim.stacking`."""

    params: Params
    opt_state: Any
    step: Int32[jax.Array, ""]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: Mesh | None = None
) -> TrainState:
    """A state at step 0, laid out on the mesh; without one, on one device.

    The parameters may be shared with `params`: a caller that donates the state must give a copy.
    """
    if mesh is None:
        return _fresh(params, optimizer, 1)
    layout = state_shardings(params, optimizer, mesh)
    params = put(params, layout.params)
    fresh = jax.jit(
        functools.partial(_fresh, optimizer=optimizer, multiple=mesh.size), out_shardings=layout
    )
    state: TrainState = fresh(params)
    return state._replace(params=params)


def _fresh(params: Params, optimizer: optax.GradientTransformation, multiple: int) -> TrainState:
    return TrainState(params, optimizer.init(stack(params, multiple)), jnp.zeros([], jnp.int32))


def _state_specs(zero: ZeroLayout, optimizer: optax.GradientTransformation) -> TrainState:
    fresh = functools.partial(_fresh, optimizer=optimizer, multiple=zero.mesh.size)
    state = jax.eval_shape(fresh, zero.params)
    specs: Any = (zero.stored, zero.state_specs(state.opt_state), P())
    return TrainState(*specs)


def state_shardings(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The shardings of a state of these parameters (arrays or their shapes) on the mesh."""
    specs = _state_specs(ZeroLayout(mesh, params), optimizer)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def state_shapes(
    model: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The shapes of a state of a model on the mesh, for compiling before there is one."""
    fresh = functools.partial(_fresh, optimizer=optimizer, multiple=mesh.size)
    shapes: TrainState = jax.eval_shape(fresh, gpt.param_shapes(model))
    return shapes


def batch_loss(
    params: Params,
    batch: Batch,
    model: ModelConfig,
    compute: Compute = PLAIN,
    rounded: Params | None = None,
) -> tuple[Float32[jax.Array, ""], Float32[jax.Array, ""]]:
    """(sum, weight) of the loss over rows [B, T+1]; the caller divides once.

    `batch` holds `tokens` [B, T+1], `mask` [B, T+1] (what a token weighs where it is predicted)
    and optionally `advantage` [B], which multiplies each row's loss but not its weight. `rounded`
    are the kernels as they are multiplied, if at hand: see `gpt.features`.
    """
    tokens, mask = batch["tokens"], batch["mask"][:, 1:]
    weights = None
    if "advantage" in batch:
        weights = jnp.broadcast_to(batch["advantage"][:, None], mask.shape)
    x = gpt.features(params, tokens[:, :-1], model, compute, rounded)
    return cross_entropy(
        x, params["lm_head"]["kernel"], tokens[:, 1:], mask, softcap=model.softcap,
        weights=weights, compute=compute,
        rounded=rounded["lm_head"]["kernel"] if rounded and compute.fused_fp8 else None,
    )  # fmt: skip


def loss_and_grads(
    params: Params,
    batch: Batch,
    model: ModelConfig,
    compute: Compute = PLAIN,
) -> tuple[Params, Float32[jax.Array, ""], Float32[jax.Array, ""]]:
    """Sums over the A micro-batches of [A, B, ...]: gradients, loss, weight. Nothing is divided.

    Of one whose advantages are all 0, which has no gradient, only the weight is computed.
    """
    several = batch["tokens"].shape[0] > 1
    rounded = None  # once for all micro-batches
    if compute.fused_fp8:
        rounded = fp8.round_kernels(params)
    elif several and compute.fused and compute.dtype == jnp.bfloat16:
        rounded = round_kernels(params)

    def one(micro: Batch) -> tuple[Params, jax.Array, jax.Array]:
        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            return batch_loss(params, micro, model, compute, rounded)

        (total, weight), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, total, weight

    if not several:
        return one(jax.tree.map(lambda x: x[0], batch))

    def add(carry: Any, micro: Batch) -> tuple[Any, None]:
        def learned() -> Any:
            return jax.tree.map(jnp.add, carry, one(micro))

        def weighed() -> Any:
            return (*carry[:2], carry[2] + jnp.sum(micro["mask"][:, 1:].astype(jnp.float32)))

        if "advantage" not in micro:
            return learned(), None
        return lax.cond(jnp.any(micro["advantage"] != 0), learned, weighed), None

    zeros = (jax.tree.map(jnp.zeros_like, params), jnp.zeros([]), jnp.zeros([]))
    sums, _ = lax.scan(add, zeros, batch)
    return sums


class Step:
    """The jitted step of a stage, for states of `init_state` and batches of `put_batch`.

    Stages that differ in the optimizer's hyperparameters alone, which are an input, share it.
    """

    def __init__(self, jitted: Any, hyperparameters: Any) -> None:
        self.jitted, self._given = jitted, hyperparameters

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        stepped: tuple[TrainState, dict[str, jax.Array]] = self.jitted(state, batch, self._given)
        return stepped

    def trace(self, state: Any, batch: Any) -> jax.stages.Traced:
        """For arrays, or shapes of them."""
        traced: jax.stages.Traced = self.jitted.trace(state, batch, self._given)
        return traced

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """As `trace`. What is compiled of it is called through `through`."""
        lowered: jax.stages.Lowered = self.trace(state, batch).lower()
        return lowered

    def through(self, compiled: Any) -> Step:
        """The same step, by a program that was compiled of `lower`."""
        return Step(compiled, self._given)


def make_train_step(
    model: ModelConfig, optimizer: Any, mesh: Mesh, compute: Compute = PLAIN
) -> Step:
    """The step over a mesh; the optimizer is one of ours or of Optax.

    Gradients are summed on each device over its micro-batches [A, B, ...] and reduced once, into
    the shards of `optim.zero`. Metrics: `loss` (mean over weight), `weight` and `grad_norm`.
    """
    given = optimizer.hyperparameters if isinstance(optimizer, Optimizer) else ()
    leaves, tree = jax.tree.flatten(given)
    jitted = _jitted_step(model, optimizer, mesh, compute, tree)
    return Step(jitted, np.array(leaves, np.float32))  # one array: each that is handed over costs


@functools.lru_cache(maxsize=1)
def _jitted_step(
    model: ModelConfig, optimizer: Any, mesh: Mesh, compute: Compute, given: Any
) -> Any:
    """The step as a function of its hyperparameters, too, of which `given` is the structure."""
    compute = mesh_compute(mesh, model, compute)
    zero = ZeroLayout.of_model(mesh, model)
    specs, gather = _state_specs(zero, optimizer), zero.model_gather()
    chain = optimizer.chain if isinstance(optimizer, Optimizer) else optimizer
    update = over_tensor(
        functools.partial(_update, optimizer=chain, zero=zero),
        mesh,
        (specs, zero.gathered, zero.gathered, P(), P(), P()),
        (specs, P()),
    )

    def step(
        state: TrainState, batch: Batch, numbers: Float32[jax.Array, " N"]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        whole = gather(state.params)
        sums = loss_and_grads(whole, batch, model, compute)
        return update(state, whole, *sums, jax.tree.unflatten(given, list(numbers)))

    layout = state_shardings(zero.params, optimizer, mesh)
    return jax.jit(
        over_rows(step, mesh, specs, (specs, P()), P()),
        donate_argnums=0,
        in_shardings=(layout, sharding(mesh, "accumulation", "batch"), replicated(mesh)),
        out_shardings=(layout, replicated(mesh)),
        compiler_options=dict(compute.options) or None,
    )


def _update(
    state: TrainState,
    whole: Params,
    grads: Params,
    total: Float32[jax.Array, ""],
    weight: Float32[jax.Array, ""],
    given: Any,
    *,
    optimizer: optax.GradientTransformation,
    zero: ZeroLayout,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The second half of a step: this device's sums are reduced, and its shard is updated."""
    if zero.axes:
        total, weight = lax.psum((total, weight), zero.axes)
    # A batch without a counted token is harmless: its gradients are zero. So is one of weights so
    # small that their inverse is infinite.
    scale = 1.0 / jnp.where(weight >= TINY, weight, 1.0)
    grads = jax.tree.map(lambda g: g * scale, zero.reduce_scatter(grads))
    norm = zero.norm(grads)
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, zero.local_shard(whole), norm=norm, given=given or None
    )
    params = optax.apply_updates(state.params, zero.all_gather_updates(updates))
    metrics = {"loss": total * scale, "weight": weight, "grad_norm": norm}
    return TrainState(params, opt_state, state.step + 1), metrics
