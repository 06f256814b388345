"""A tier's training step compiled for devices that are not there.

JAX must run on the CPU (`jax_platforms`): else the plugin looks for a driver. A GPU needs the
wheels of the extra `aot`, a TPU libtpu.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxchat.config import memory
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.errors import ArtifactError, ConfigError, first_line
from jaxchat.model.backend import Compute, Value, backend
from jaxchat.model.capabilities import assumed_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train.compiled.counts import Counts, Kernel, counted, kernels
from jaxchat.train.compiled.targets import Target
from jaxchat.train.loop import plan_batch
from jaxchat.train.profiling.hlo import parse
from jaxchat.train.rollouts import plan_rows
from jaxchat.train.step import TrainState, make_train_step, state_shapes

AOT = 'pip install "jaxchat[aot]"'
# Words of an error, and the wheel whose absence it means.
WHEELS = (
    ("cuDNN is not detected", "nvidia-cudnn-cu13"),
    ("cuDNN not found", "nvidia-cudnn-cu13"),
    ("No PTX compilation provider", "nvidia-cuda-nvcc"),
    ("libdevice", "nvidia-nvvm"),
)


# XLA's other form of a GPU's program, in which no product is one of its own kernels: what a card
# takes for most products (docs/profiling.md), but with the elementwise work that it then has.
LIBRARY_PRODUCTS: Mapping[str, Value] = {"xla_gpu_enable_triton_gemm": False}
Parts = Callable[..., Mapping[str, Any]]  # a function's arguments -> name: some of them


@dataclass(frozen=True)
class Program:
    """A step compiled for one device of several, and what XLA says of its memory."""

    counts: Counts
    arguments: int  # bytes
    temporaries: int  # bytes, the new outputs included
    seconds: float  # of compiling
    kernels: tuple[Kernel, ...] = field(default=(), repr=False)
    # bytes of a device by what they are, of the arguments and of what the program does not read
    held: Mapping[str, int] = field(default_factory=dict)
    beside: Program | None = None  # the same in another form

    @property
    def memory(self) -> int:
        """Bytes of a device at most, by XLA's plan."""
        return self.arguments + self.temporaries


@dataclass(frozen=True)
class StepShape:
    """The batch of a step: A micro-batches of B rows over all devices, of T tokens each."""

    accumulation: int
    rows: int
    tokens: int
    shards: int = 1  # that the rows are shared out over
    advantages: bool = False  # reinforcement learning's, a number a row

    @property
    def device_rows(self) -> int:
        """Rows that a device takes at once."""
        return self.rows // self.shards

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `train.step.batch_loss`, A of each."""
        rows = (self.accumulation, self.rows)
        tokens = (*rows, self.tokens + 1)
        batch = {
            "tokens": jax.ShapeDtypeStruct(tokens, jnp.int32),
            "mask": jax.ShapeDtypeStruct(tokens, jnp.float32),
        }
        if self.advantages:
            batch["advantage"] = jax.ShapeDtypeStruct(rows, jnp.float32)
        return batch


def find_devices(target: Target, count: int) -> list[jax.Device]:
    """Devices of a kind, described. Raises ArtifactError where a wheel is missing."""
    try:
        if target.topology:
            topology = topologies.get_topology_desc(target.topology, platform="tpu")
        else:
            topology = topologies.get_topology_desc(
                platform="cuda", target_config=target.text(), topology=f"1x1x{count}"
            )
    except (NotImplementedError, RuntimeError) as error:
        if "lockfile" in str(error):
            raise ArtifactError(
                "another process has loaded libtpu, which one at a time may; wait until it ends, "
                "or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 where it only compiles, too."
            ) from error
        wheels = 'pip install "jax[tpu]"' if target.topology else AOT
        raise ArtifactError(
            f"compiling for {target.name} needs wheels that are not installed "
            f"({first_line(error)}); run: {wheels}."
        ) from error
    devices = list(topology.devices)
    if len(devices) < count:
        raise ConfigError(
            f"the run is for {count} devices and {target.topology} has {len(devices)}; choose "
            "another kind, or set hardware.devices."
        )
    return devices[:count]


def stage_compute(config: RunConfig, target: Target) -> Compute:
    """How a step is computed on the target. Raises ConfigError for fp8 where it has none."""
    if config.compute.fp8 and not target.fp8_peak:
        raise ConfigError(f"compute.fp8 is on, and {target.name} has no fp8 products; turn it off.")
    return assumed_compute(config.compute, backend(target.platform), config.hardware.devices)


def step_shape(config: RunConfig, stage: str, tokens: int = 0) -> StepShape:
    """The batch of a stage's step over `hardware.devices`.

    `tokens` of a row are `model.sequence_len` by default; RL's rows are as long as a step's longest
    sample, rounded up. Raises ConfigError where the devices do not divide it.
    """
    shards = memory.mesh_of(config.mesh, config.hardware.devices).shards
    tokens = tokens or config.model.sequence_len
    if stage == "rl":
        rl = config.rl
        rollouts = rl.problems_per_step * rl.samples_per_problem
        at_once = 1 if isinstance(rl.micro_rows, str) else rl.micro_rows
        return StepShape(*plan_rows(rollouts, at_once, shards), tokens, shards, advantages=True)
    return StepShape(*plan_batch(getattr(config, stage), tokens, shards, stage), tokens, shards)


def compile_step(
    config: RunConfig,
    target: Target,
    stage: str = "base",
    compute: Compute | None = None,
    *,
    tokens: int = 0,
    beside: Mapping[str, Value] | None = None,
) -> Program:
    """Compiles and counts a stage's step over `hardware.devices` of the kind; nothing is run.

    See `step_shape` for `tokens`, `compile_program` for `beside`. Raises ArtifactError where a
    wheel is missing, and ConfigError where the step cannot be.
    """
    assert stage in MODELS
    compute, model = compute or stage_compute(config, target), config.model
    mesh = make_mesh(config.mesh, find_devices(target, config.hardware.devices))
    shape = step_shape(config, stage, tokens)
    optimizer = make_optimizer(
        model, config.optim_of(stage), getattr(config, stage).steps or 1,
        muon_dtype=compute.muon_dtype,
    )  # fmt: skip
    step: Any = make_train_step(model, optimizer, mesh, compute)
    arguments = state_shapes(model, optimizer, mesh), shape.batch()
    return compile_program(step, *arguments, parts=_parts_of_step, beside=beside)


def _parts_of_step(state: TrainState, batch: Any, *numbers: Any) -> Mapping[str, Any]:
    return {"parameters": state.params, "optimizer": (state.opt_state, state.step), "batch": batch}


def compile_program(
    step: Any,
    *arguments: Any,
    parts: Parts | None = None,
    beside: Mapping[str, Value] | None = None,
    **static: Any,
) -> Program:
    """Compiles a jitted function of arrays of these shapes for the devices of its shardings.

    `parts` names arguments, whose bytes are then known by name; with XLA options `beside`, a second
    program is compiled with them. Raises ArtifactError where a wheel is missing.
    """
    began = time.monotonic()
    try:
        lowered = step.lower(*arguments, **static)
        compiled = lowered.compile()
        program = _counted(compiled, arguments, parts, began)
        if beside is None:
            return program
        began = time.monotonic()
        other = _counted(lowered.compile(dict(beside)), arguments, parts, began)
        return replace(program, beside=other)
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        reason = first_line(error)
        lacks = next((wheel for words, wheel in WHEELS if words in str(error)), "")
        if not lacks:
            raise
        raise ArtifactError(
            f"compiling for a GPU needs the wheel {lacks}, which is not installed ({reason}); "
            f"run: {AOT}."
        ) from error


def _counted(compiled: Any, arguments: Any, parts: Parts | None, began: float) -> Program:
    module, plan = parse(compiled.as_text()), compiled.memory_analysis()
    found = tuple(kernels(module))
    named = parts(*arguments) if parts else {}
    laid_out = parts(*compiled.input_shardings[0]) if parts else {}
    return Program(
        counts=counted(module, found),
        arguments=plan.argument_size_in_bytes,
        temporaries=plan.temp_size_in_bytes
        + plan.output_size_in_bytes - plan.alias_size_in_bytes,
        seconds=time.monotonic() - began,
        kernels=found,
        held={name: _bytes_of(arrays, laid_out[name]) for name, arrays in named.items()},
    )  # fmt: skip


def _bytes_of(arrays: Any, shardings: Any) -> int:
    """Bytes of a device; what a program does not read has no sharding, and counts as a whole."""
    leaves = jax.tree.leaves(shardings, is_leaf=lambda leaf: leaf is None)
    return sum(
        math.prod(layout.shard_shape(array.shape) if layout else array.shape)
        * array.dtype.itemsize
        for array, layout in zip(jax.tree.leaves(arrays), leaves, strict=True)
    )  # fmt: skip
