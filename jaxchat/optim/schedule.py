"""Schedules of the rate, the momentum and the decay, as functions of the step (traceable).

In the formulas t is the step, from 0, N the number of steps, D those of the warmdown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxchat.config.schema import OptimConfig

NO_RATES: Mapping[str, float] = MappingProxyType({})


class Hyperparameters(NamedTuple):
    """The numbers of a stage's optimizer that differ from stage to stage, floats or scalars.

    As inputs of a step, instead of constants, they leave all stages one program.
    """

    steps: Any
    warmup: Any  # steps
    warmdown: Any  # steps, or a fraction of one
    final_lr_frac: Any
    momentum_start: Any
    momentum: Any
    momentum_end: Any
    momentum_warmup: Any  # steps
    weight_decay: Any
    grad_clip: Any
    rates: Mapping[str, Any]  # of each group, at its highest

    @classmethod
    def of(
        cls, config: OptimConfig, steps: int, rates: Mapping[str, float] = NO_RATES
    ) -> Hyperparameters:
        """Those of a stage of `steps` steps. W of the warmup is a number or a share of them."""
        warmup = round(config.warmup_ratio * steps) or config.warmup_steps
        return cls(
            steps, warmup, config.warmdown_steps(steps), config.final_lr_frac,
            config.momentum_start, config.momentum, config.momentum_end,
            config.momentum_warmup_steps, config.weight_decay, config.grad_clip, dict(rates),
        )  # fmt: skip


class Schedule(Protocol):
    """A value by the step, with the numbers of its own stage or with those that are `given`."""

    def __call__(self, step: jax.Array, given: Hyperparameters | None = None, /) -> jax.Array:
        """The value at a step."""


def rate_multiplier(config: OptimConfig, steps: int) -> Schedule:
    """Linear warmup of W steps, constant, linear warmdown to f = `final_lr_frac` at `steps`.

    (t + 1) / W while t < W; then l + (1 - l) f with l = min(1, (N - t) / D).
    """
    own = Hyperparameters.of(config, steps)

    def schedule(step: jax.Array, given: Hyperparameters | None = None) -> jax.Array:
        it, n = step.astype(jnp.float32), given or own
        up = jnp.minimum(1.0, (it + 1) / jnp.maximum(n.warmup, 1))
        left = jnp.clip((n.steps - it) / _divisor(n.warmdown), 0.0, 1.0)
        down = left + (1 - left) * n.final_lr_frac
        return jnp.where(it < n.warmup, up, down)

    return schedule


def momentum(config: OptimConfig, steps: int) -> Schedule:
    """Linear warmup of W steps from s = `momentum_start` to m, linear warmdown to e.

    (1 - t / W) s + t / W m while t < W; then (1 - c) m + c e with c = max(0, (t - N + D) / D).
    """
    own = Hyperparameters.of(config, steps)

    def schedule(step: jax.Array, given: Hyperparameters | None = None) -> jax.Array:
        it, n = step.astype(jnp.float32), given or own
        up = jnp.minimum(1.0, it / jnp.maximum(n.momentum_warmup, 1))
        warm = (1 - up) * n.momentum_start + up * n.momentum
        down = jnp.clip((it - (n.steps - n.warmdown)) / _divisor(n.warmdown), 0.0, 1.0)
        cool = (1 - down) * n.momentum + down * n.momentum_end
        # A run shorter than the warmup never reaches the plateau the warmdown starts from.
        return jnp.where(it < n.momentum_warmup, warm, cool)

    return schedule


def decay(config: OptimConfig, steps: int) -> Schedule:
    """Muon's decay: the constant d, or a half cosine to 0 at `steps`, d (1 + cos(pi t / N)) / 2."""
    own = Hyperparameters.of(config, steps)

    def schedule(step: jax.Array, given: Hyperparameters | None = None) -> jax.Array:
        it, n = step.astype(jnp.float32), given or own
        if config.decay_schedule == "constant":
            return jnp.full_like(it, n.weight_decay)
        cosine: jax.Array = n.weight_decay * 0.5 * (1 + jnp.cos(math.pi * it / n.steps))
        return cosine

    return schedule


def _divisor(steps: Any) -> Any:
    """1 for no steps at all."""
    return jnp.where(steps == 0, 1, steps)
