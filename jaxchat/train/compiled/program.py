"""A tier's training step compiled for devices that are not there.

JAX must run on the CPU (`jax_platforms`): else the plugin looks for a driver. A GPU needs the
wheels of the extra `aot`, a TPU libtpu.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.errors import ArtifactError, ConfigError, first_line
from jaxchat.model.backend import Compute, backend
from jaxchat.model.capabilities import assumed_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import batch_shards, make_mesh
from jaxchat.train.compiled.counts import Counts, count
from jaxchat.train.compiled.targets import Target
from jaxchat.train.loop import plan_batch
from jaxchat.train.step import make_train_step, state_shapes

AOT = 'pip install "jaxchat[aot]"'
# Words of an error, and the wheel whose absence it means.
WHEELS = (
    ("cuDNN is not detected", "nvidia-cudnn-cu13"),
    ("cuDNN not found", "nvidia-cudnn-cu13"),
    ("No PTX compilation provider", "nvidia-cuda-nvcc"),
    ("libdevice", "nvidia-nvvm"),
)


@dataclass(frozen=True)
class Program:
    """A step compiled for one device of several, and what XLA says of its memory."""

    counts: Counts
    arguments: int  # bytes
    temporaries: int  # bytes, the new outputs included
    seconds: float  # of compiling

    @property
    def memory(self) -> int:
        """Bytes of a device at most, by XLA's plan."""
        return self.arguments + self.temporaries


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


def compile_step(
    config: RunConfig, target: Target, stage: str = "base", compute: Compute | None = None
) -> Program:
    """Compiles and counts a stage's step over `hardware.devices` of the kind; nothing is run.

    Raises ArtifactError where a wheel is missing, and ConfigError where the step cannot be.
    """
    assert stage in MODELS
    train = getattr(config, stage)
    compute = compute or stage_compute(config, target)
    mesh = make_mesh(config.mesh, find_devices(target, config.hardware.devices))
    time_, model = config.model.sequence_len, config.model
    accumulation, rows = plan_batch(train, time_, batch_shards(mesh), stage)
    optim = config.optim_of(stage)
    optimizer = make_optimizer(model, optim, train.steps or 1, muon_dtype=compute.muon_dtype)
    shape = (accumulation, rows, time_ + 1)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "mask": jax.ShapeDtypeStruct(shape, jnp.float32),
    }
    step: Any = make_train_step(model, optimizer, mesh, compute)
    return compile_program(step, state_shapes(model, optimizer, mesh), batch)


def compile_program(step: Any, *arguments: Any) -> Program:
    """Compiles a jitted function of arrays of these shapes for the devices of its shardings."""
    began = time.monotonic()
    try:
        compiled = step.lower(*arguments).compile()
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        reason = first_line(error)
        lacks = next((wheel for words, wheel in WHEELS if words in str(error)), "")
        if not lacks:
            raise
        raise ArtifactError(
            f"compiling for a GPU needs the wheel {lacks}, which is not installed ({reason}); "
            f"run: {AOT}."
        ) from error
    plan = compiled.memory_analysis()
    return Program(
        counts=count(compiled.as_text()),
        arguments=plan.argument_size_in_bytes,
        temporaries=plan.temp_size_in_bytes
        + plan.output_size_in_bytes - plan.alias_size_in_bytes,
        seconds=time.monotonic() - began,
    )  # fmt: skip
