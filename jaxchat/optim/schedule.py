"""Schedules of the rate, the momentum and the decay, as functions of the step (traceable).

In the formulas t is the step, from 0, N the number of steps, D those of the warmdown.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxchat.config.schema import OptimConfig

Schedule = Callable[[jax.Array], jax.Array]


def rate_multiplier(config: OptimConfig, steps: int) -> Schedule:
    """Linear warmup of W steps, constant, linear warmdown to f = `final_lr_frac` at `steps`.

    W is a number of steps or a share of them.
    (t + 1) / W while t < W; then l + (1 - l) f with l = min(1, (N - t) / D).
    """
    warmup = round(config.warmup_ratio * steps) or config.warmup_steps
    warmdown = config.warmdown_steps(steps)

    def schedule(step: jax.Array) -> jax.Array:
        it = step.astype(jnp.float32)
        up = jnp.minimum(1.0, (it + 1) / max(warmup, 1)) if warmup else jnp.ones_like(it)
        left = jnp.clip((steps - it) / (warmdown or 1), 0.0, 1.0)
        down = left + (1 - left) * config.final_lr_frac
        return jnp.where(it < warmup, up, down)

    return schedule


def momentum(config: OptimConfig, steps: int) -> Schedule:
    """Linear warmup of W steps from s = `momentum_start` to m, linear warmdown to e.

    (1 - t / W) s + t / W m while t < W; then (1 - c) m + c e with c = max(0, (t - N + D) / D).
    """
    warmdown = config.warmdown_steps(steps)

    def schedule(step: jax.Array) -> jax.Array:
        it = step.astype(jnp.float32)
        up = jnp.minimum(1.0, it / max(config.momentum_warmup_steps, 1))
        warm = (1 - up) * config.momentum_start + up * config.momentum
        down = jnp.clip((it - (steps - warmdown)) / (warmdown or 1), 0.0, 1.0)
        cool = (1 - down) * config.momentum + down * config.momentum_end
        # A run shorter than the warmup never reaches the plateau the warmdown starts from.
        return jnp.where(it < config.momentum_warmup_steps, warm, cool)

    return schedule


def decay(config: OptimConfig, steps: int) -> Schedule:
    """Muon's decay: the constant d, or a half cosine to 0 at `steps`, d (1 + cos(pi t / N)) / 2."""

    def schedule(step: jax.Array) -> jax.Array:
        it = step.astype(jnp.float32)
        if config.decay_schedule == "constant":
            return jnp.full_like(it, config.weight_decay)
        return config.weight_decay * 0.5 * (1 + jnp.cos(math.pi * it / steps))

    return schedule
