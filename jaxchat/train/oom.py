"""Turns RESOURCE_EXHAUSTED into advice: the micro_rows that fit, or what else to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxchat.config import memory
from jaxchat.errors import OutOfMemory
from jaxchat.model.backend import backend, device_memory
from jaxchat.parallel.mesh import batch_shards
from jaxchat.train.first_step import is_exhausted
from jaxchat.train.session import TrainingJob

LARGER = (
    "use more devices with --set mesh.fsdp=N, a smaller run.depth, or a shorter model.sequence_len"
)


@contextmanager
def explained(job: TrainingJob, batch: tuple[int, int, int]) -> Iterator[None]:
    """Raises OutOfMemory, with what would fit, where a device's memory does not suffice.

    `batch` [A, B, T] are the sizes of a step's batch: A micro-batches of B rows over all devices,
    of T tokens each.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise OutOfMemory(advice(job.title, predicted(job, batch), str(error))) from error


def predicted(job: TrainingJob, batch: tuple[int, int, int]) -> memory.Step:
    """A step on a batch [A, B, T], as the prediction of its memory wants it."""
    accumulation, rows, row_tokens = batch
    platform = job.mesh.devices.flat[0].platform
    return memory.Step(
        model=replace(job.model, sequence_len=row_tokens),
        optim=job.optim,
        rows=rows // batch_shards(job.mesh),
        accumulation=accumulation,
        mesh=memory.Mesh(*(int(size) for size in job.mesh.devices.shape)),
        platform=platform if platform in memory.CHUNK_ROWS else backend(platform).sizes,
        compute_bytes=jnp.dtype(job.dtype).itemsize,
        chunk_rows=job.compute.loss_chunk_rows,
        lean_relu2=job.compute.lean_relu2,
        fp8=job.compute.fp8,
        fused=backend(platform).fused,
    )


def advice(stage: str, step: memory.Step, error: str) -> str:
    """The failed request, its device, and the setting to change."""
    device = jax.local_devices()[0]
    limit, whole = device_memory(device), step.rows * step.accumulation
    requested = (
        f"{stage} runs out of memory on {device.device_kind} ({limit / 1e9:.1f} GB) with "
        f"micro_rows {step.rows}, predicted to take {memory.predict(step).peak / 1e9:.1f} GB "
        f"({shortened(error)})"
    )
    # fewer than now, even where these should have fitted by the prediction
    rows = memory.largest_rows(step, whole, limit * (1 - memory.MARGIN), most=step.rows - 1)
    peak = memory.predict(memory.with_rows(step, rows or 1, whole)).peak
    if rows:
        return (
            f"{requested}; give the command again with --set {stage}.micro_rows={rows}, predicted "
            f"to take {peak / 1e9:.1f} GB: the batch of a step stays as it is."
        )
    return (
        f"{requested}; a single row would take {peak / 1e9:.1f} GB, so no micro_rows helps: "
        f"{LARGER}."
    )


def shortened(error: str) -> str:
    """XLA's error for a parenthesis."""
    return error.splitlines()[0][:200].rstrip(".")
