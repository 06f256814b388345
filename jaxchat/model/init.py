"""Initializers of every parameter: one table, equal in distribution to nanochat's.

`classic` is the table of November 2025, `modern` that of July 2026; September 2026 differs from
that in value embeddings alone. What `classic` did not have yet is initialised as in `modern`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import constant, normal
from jax.typing import DTypeLike

from jaxchat.config.schema import ModelConfig

Initializer = Callable[..., Array]  # (key, shape, dtype) -> array


def parameter(module: Any, name: str, initializer: Initializer, shape: tuple[int, ...]) -> Array:
    """A parameter of a flax module, which is made where the module has none.

    Flax would trace the initializer of each that it has, to compare shapes: 15% of all tracing.
    """
    held: Array | None = module.get_variable("params", name)
    return module.param(name, initializer, shape) if held is None else held


def _uniform(low: float, high: float) -> Initializer:
    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, low, high)

    return init


def _fan(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Normal, std 1/sqrt(in) * min(1, sqrt(out/in)): arXiv 2310.17813."""
    fan_in, fan_out = shape
    std = math.sqrt(1.0 / fan_in) * min(1.0, math.sqrt(fan_out / fan_in))
    return jax.random.normal(key, shape, dtype) * std


def _ramp(start: float, stop: float) -> Initializer:
    """From the first layer's value to the last's."""

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        del key
        steps = max(shape[0] - 1, 1)
        return start + (stop - start) * jnp.arange(shape[0], dtype=dtype) / steps

    return init


def init_table(config: ModelConfig) -> dict[str, Initializer]:
    """The initializer of each parameter, by the last name in its path that is listed here."""
    bound = (3.0 / config.n_embd) ** 0.5  # a uniform of this bound has std 1/sqrt(D)
    table: dict[str, Initializer] = {
        "wte": normal(0.8),
        "lm_head": normal(0.001),
        "c_q": _uniform(-bound, bound),
        "c_k": _uniform(-bound, bound),
        "c_v": _uniform(-bound, bound),
        "c_fc": _uniform(-0.4 * bound, 0.4 * bound),
        "c_proj": constant(0.0),
        "value_embeds": _uniform(-bound, bound),  # a lookup's output: sqrt(D) times smaller than v
        "ve_gate": _uniform(0.0, 0.02),  # slightly above the neutral 3 * sigmoid(0) = 1.5
        "smear_gate": _uniform(0.0, 0.02),
        "smear_lambda": constant(0.0),
        "resid_lambdas": _ramp(1.15, 1.05),
        "x0_lambdas": _ramp(0.20, 0.05),
        "backout_lambda": constant(0.2),
    }
    if config.value_embeds_std:
        table["value_embeds"] = normal(config.value_embeds_std)
    if config.init == "classic":
        table |= {"wte": normal(1.0), "lm_head": constant(0.0)}
        for name in ("c_q", "c_k", "c_v", "c_fc"):
            table[name] = _fan
    return table
