"""The engine's programs compiled for a device that is not there: prefill and decode.

An engine has one device, and the whole weights on it in its dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxchat.config.schema import RunConfig
from jaxchat.inference import jitted
from jaxchat.inference.engine import ROUNDED_SLOTS
from jaxchat.model import gpt
from jaxchat.model.backend import Compute, backend
from jaxchat.model.capabilities import assumed_inference
from jaxchat.model.joined import join_kernels
from jaxchat.model.kv_cache import init_cache
from jaxchat.train.compiled.program import Program, compile_program, find_devices
from jaxchat.train.compiled.targets import Target

STEPS = 8  # of a dispatch, as `Engine` has them by default
PAUSES = (0, 1, 2)  # as many tokens end a completion or call a tool; which is all the same


@dataclass(frozen=True)
class EngineShape:
    """What an engine decodes at once, and the prompts it reads one by one; all rounded up."""

    slots: int
    positions: int  # of the cache
    prompt: int  # tokens
    truncate: bool = False  # samples are drawn from the likeliest tokens only


def compile_prefill(config: RunConfig, target: Target, shape: EngineShape) -> Program:
    """Compiles and counts reading one prompt. Raises ArtifactError where a wheel is missing."""
    compute = engine_compute(config, target, shape.slots)
    params, prompt, length = _on(target, (
        _weights(config, compute),
        jax.ShapeDtypeStruct((1, shape.prompt), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ))  # fmt: skip
    return compile_program(
        jitted.prefill, params, prompt, length,
        parts=_parts_of_prefill, config=config.model, compute=compute,
    )  # fmt: skip


def compile_decode(config: RunConfig, target: Target, shape: EngineShape) -> Program:
    """Compiles and counts a dispatch of STEPS tokens. Raises ArtifactError likewise."""
    compute = engine_compute(config, target, shape.slots)
    params, cache, slots = _on(target, (
        _weights(config, compute),
        jax.eval_shape(
            lambda: init_cache(config.model, shape.slots, shape.positions, compute.dtype)
        ),
        jax.ShapeDtypeStruct((shape.slots, len(jitted.SLOT) + STEPS), jnp.int32),
    ))  # fmt: skip
    return compile_program(
        jitted.decode_steps, params, cache, slots,
        parts=_parts_of_decode, config=config.model, compute=compute, pauses=PAUSES,
        truncate=shape.truncate, alternatives=0,
    )  # fmt: skip


def engine_compute(config: RunConfig, target: Target, slots: int) -> Compute:
    """How an engine of `slots` computes on the target."""
    compute = assumed_inference(config.compute, backend(target.platform))
    return compute if slots >= ROUNDED_SLOTS else compute.unrounded()


def _parts_of_prefill(params: Any, *prompt: Any) -> Mapping[str, Any]:
    return {"parameters": params, "batch": prompt}


def _parts_of_decode(params: Any, cache: Any, slots: Any) -> Mapping[str, Any]:
    return {"parameters": params, "cache": cache, "batch": slots}


def _weights(config: RunConfig, compute: Compute) -> Any:
    """The parameters as `Engine.set_params` has them."""

    def part(shapes: Any) -> Any:
        narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, compute.dtype), shapes)
        return jax.eval_shape(join_kernels, narrow) if compute.joined else narrow

    return {name: part(shapes) for name, shapes in gpt.param_shapes(config.model).items()}


def _on(target: Target, shapes: Any) -> Any:
    layout = SingleDeviceSharding(find_devices(target, 1)[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes)
