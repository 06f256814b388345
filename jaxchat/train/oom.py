"""When a device cannot hold a step: what the user is told instead of XLA's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.config import memory
from jaxchat.config.schema import ModelConfig, OptimConfig
from jaxchat.errors import OutOfMemory
from jaxchat.model.backend import backend, device_memory
from jaxchat.parallel.mesh import batch_shards

WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")  # of XLA's many


def step_of(
    model: ModelConfig,
    optim: OptimConfig,
    mesh: Mesh,
    dtype: DTypeLike,
    *,
    time: int,
    micro: int,
    accumulation: int,
    chunk_rows: int = 0,
) -> memory.Step:
    """A step of micro-batches of `micro` rows of `time` tokens over all devices, to predict it."""
    return memory.Step(
        model=replace(model, sequence_len=time),
        optim=optim,
        rows=micro // batch_shards(mesh),
        accumulation=accumulation,
        mesh=memory.Mesh(*(int(size) for size in mesh.devices.shape)),
        platform=backend(mesh.devices.flat[0].platform).sizes,
        compute_bytes=jnp.dtype(dtype).itemsize,
        chunk_rows=chunk_rows,
    )


@contextmanager
def explained(stage: str, step: memory.Step) -> Iterator[None]:
    """Raises OutOfMemory, with what would fit, where a device's memory does not suffice."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(sentence(stage, step, str(error))) from error


def is_exhausted(error: Exception) -> bool:
    """Whether XLA found no memory; a full disk may be called RESOURCE_EXHAUSTED, too."""
    told = str(error)
    return any(words in told for words in WORDS) and os.strerror(errno.ENOSPC) not in told


def sentence(stage: str, step: memory.Step, told: str) -> str:
    """What was asked, of what, and what to do."""
    device = jax.local_devices()[0]
    limit, whole = device_memory(device), step.rows * step.accumulation
    needed = memory.predict(step).peak
    asked = (
        f"{stage} runs out of memory on {device.device_kind} ({limit / 1e9:.1f} GB) with "
        f"micro_rows {step.rows}, predicted to take {needed / 1e9:.1f} GB "
        f"({told.splitlines()[0][:200].rstrip('.')})"
    )
    # fewer than now, even where the prediction says that these would fit
    rows = memory.largest_rows(step, whole, limit * (1 - memory.MARGIN), most=step.rows - 1)
    if rows:
        peak = memory.predict(memory.with_rows(step, rows, whole)).peak
        return (
            f"{asked}; give the command again with --set {stage}.micro_rows={rows}, predicted to "
            f"take {peak / 1e9:.1f} GB: the batch of a step stays as it is."
        )
    least = memory.predict(memory.with_rows(step, 1, whole)).peak
    return (
        f"{asked}; a single row would take {least / 1e9:.1f} GB, so no micro_rows helps: use more "
        "devices with --set mesh.fsdp=N, a smaller run.depth, or a shorter model.sequence_len."
    )
