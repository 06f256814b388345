"""The optimizer: one Optax partition of Muon and AdamW chains over the parameter table."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from jaxchat.config.schema import ModelConfig, OptimConfig, RatesConfig
from jaxchat.optim import muon, schedule
from jaxchat.optim.param_groups import Group, label_params, parameter_table

ADAM_EPS = 1e-10
RATES = frozenset(f.name for f in fields(RatesConfig))


@dataclass(frozen=True)
class Optimizer:
    """A chain of transforms, and the hyperparameters of a stage, which are inputs of its step.

    Two are equal where they differ in hyperparameters alone: a step is then the same program.
    """

    model: ModelConfig
    structure: OptimConfig  # which transforms there are: see `_structure`
    muon_dtype: DTypeLike
    chain: optax.GradientTransformationExtraArgs = field(compare=False, repr=False)
    hyperparameters: schedule.Hyperparameters = field(compare=False)

    def init(self, params: Any) -> Any:
        """The state of the chain."""
        return self.chain.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """Of the chain; `given` hyperparameters stand in place of its own."""
        updated: tuple[Any, Any] = self.chain.update(updates, state, params, **extra)
        return updated


def make_optimizer(
    model: ModelConfig,
    config: OptimConfig,
    steps: int,
    *,
    lr_scale: float = 1.0,
    muon_dtype: DTypeLike = jnp.float32,
) -> Optimizer:
    """The whole chain for `steps` steps; every rate is multiplied by `lr_scale`.

    `muon_dtype` is what the orthogonalisation computes in: bf16 on a GPU, fp32 on a CPU.
    """
    table = parameter_table(model, config)
    rates = {group.label: group.rate * lr_scale for group in table}
    own = schedule.Hyperparameters.of(config, steps, rates)
    multiplier = schedule.rate_multiplier(config, steps)
    chains = {}
    for group in table:
        muon_group = group.kind == "muon"
        core = muon_chain(config, steps, muon_dtype) if muon_group else adamw_chain(group)
        chains[group.label] = optax.chain(core, _scale_by_rate(group.label, multiplier, own))
    chain = optax.partition(chains, lambda params: label_params(params, table))
    if config.grad_clip:
        chain = optax.chain(clip_by_global_norm(config.grad_clip), chain)
    return Optimizer(model, _structure(config), jnp.dtype(muon_dtype), chain, own)


def _structure(config: OptimConfig) -> OptimConfig:
    """A configuration without the numbers that are hyperparameters, but for whether they are 0."""
    kept: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(OptimConfig)}
    for name, value in kept.items():
        if isinstance(value, int | float) and name in RATES:
            kept[name] = type(value)(value != 0) if name in ("weight_decay", "grad_clip") else 0
    return OptimConfig(**kept)


def clip_by_global_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Optax's, but the norm may be given: a shard of the gradients does not tell it."""

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        norm: Any = None,
        given: Any = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        del params
        norm = optax.tree.norm(updates) if norm is None else norm
        most = limit if given is None else given.grad_clip
        return jax.tree.map(lambda g: jnp.where(norm < most, g, g / norm * most), updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def muon_chain(
    config: OptimConfig, steps: int, dtype: DTypeLike = jnp.float32
) -> optax.GradientTransformation:
    """Muon with the refinements that `config` turns on; with none it is plain Muon."""
    express = config.orthogonalizer == "polar_express"
    transforms = [muon.nesterov_momentum(schedule.momentum(config, steps))]
    if config.equilibrate_rows:
        transforms.append(muon.equilibrate_rows())
    if express:
        transforms.append(muon.orthogonalize(muon.POLAR_EXPRESS, dtype, slack=1.01, eps=1e-6))
    else:
        transforms.append(muon.orthogonalize(muon.NEWTON_SCHULZ, dtype))
    if config.renormalize:
        transforms.append(muon.renormalize())
    if config.normuon:
        transforms.append(muon.normuon(config.normuon_beta2))
    if config.weight_decay:
        decay = schedule.decay(config, steps)
        transforms.append(muon.decoupled_decay(decay, config.cautious_decay))
    transforms.append(muon.scale_by_shape())
    return optax.chain(*transforms)


def adamw_chain(group: Group) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with the group's betas and decay, before its rate."""
    adam = optax.scale_by_adam(b1=group.beta1, b2=group.beta2, eps=ADAM_EPS)
    if not group.decay:
        return adam
    return optax.chain(adam, optax.add_decayed_weights(group.decay))


def _scale_by_rate(
    label: str, multiplier: schedule.Schedule, own: schedule.Hyperparameters
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_schedule` with the rate of a group."""

    def update(
        updates: Any, state: Any, params: Any = None, *, given: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        del params
        rate = -(given or own).rates[label] * multiplier(state.count, given)
        count = optax.safe_increment(state.count)
        return jax.tree.map(lambda g: rate.astype(g.dtype) * g, updates), state._replace(
            count=count
        )

    fresh = optax.scale_by_schedule(lambda count: count)
    return optax.GradientTransformationExtraArgs(fresh.init, update)


_AVERAGES = (optax.ScaleByAdamState, muon.MomentumState, muon.NorMuonState)


def carry_over(fresh: Any, before: Any) -> Any:
    """The optimizer's state `fresh`, with the averages of the stage `before`.

    Averages of gradients, and of their squares, are carried over, with AdamW's count of them, which
    corrects their bias. Schedules restart: they are functions of the new stage's own steps. Both
    are states of `make_optimizer` for the same model on the same mesh; their chains may differ, by
    a decay or clipping. An average that only `fresh` has stays as it is.
    """
    states = jax.tree_util.tree_flatten_with_path(before, is_leaf=_is_average)[0]
    found = {_group(path, state): state for path, state in states if _is_average(state)}

    def carried(path: tuple[Any, ...], state: Any) -> Any:
        old = found.get(_group(path, state)) if _is_average(state) else None
        if isinstance(old, muon.MomentumState):  # its schedule restarts
            return old._replace(steps=state.steps)
        return state if old is None else old

    return jax.tree_util.tree_map_with_path(carried, fresh, is_leaf=_is_average)


def _is_average(state: Any) -> bool:
    return isinstance(state, _AVERAGES)


def _group(path: tuple[Any, ...], state: Any) -> tuple[str, ...]:
    """The label of the parameters' group, and the kind of average: the same in every chain."""
    labels = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return (*labels, type(state).__name__)
