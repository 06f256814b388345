"""Whether a tier fits on this machine: devices, memory, disk, time."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from jaxchat import paths
from jaxchat.config import memory
from jaxchat.config.machine import free_memory_bytes
from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs, registry
from jaxchat.data.download import cache
from jaxchat.errors import ConfigError
from jaxchat.progress import duration
from jaxchat.runs.doctor.check import Check
from jaxchat.runs.doctor.speed import Speed
from jaxchat.runs.plan import plan
from jaxchat.runs.tables import size

TRAINED = ("base", "mid", "sft")


@dataclass(frozen=True)
class Here:
    """The devices that a run would have. `memory_bytes`: of each, that a run may take."""

    platform: str  # "cpu" or "gpu"
    kind: str
    devices: int
    memory_bytes: float

    def configured(self, config: RunConfig) -> RunConfig:
        """The run with this machine in place of the one that it is meant for."""
        hardware = replace(
            config.hardware,
            name=self.kind,
            devices=self.devices,
            memory_bytes=self.memory_bytes,
            compute_bytes=memory.WIDE if self.platform == "cpu" else memory.WIDE // 2,
        )
        return replace(config, hardware=hardware)


def find_here() -> Here:
    """This machine's devices. Starts JAX.

    The memory of a GPU is what JAX may take of it; on a CPU devices share what is free, less what
    `memory.MARGIN` holds back.
    """
    import jax

    from jaxchat.model.backend import backend, device_memory

    device, count = jax.devices()[0], len(jax.devices())
    limit = float(device_memory(device))
    if backend(device.platform).shares_host:
        limit = plan.room(free_memory_bytes()) / count
    return Here(backend(device.platform).sizes, device.device_kind, count, limit)


def lacks_gpu(config: RunConfig, here: Here) -> bool:
    """Whether the tier is meant for GPUs, and there is none."""
    return here.platform == "cpu" and config.hardware.compute_bytes < memory.WIDE


def check_devices(config: RunConfig, here: Here) -> Check:
    """Whether the tier has the kind of device it is meant for, and a step divides by them."""
    from jaxchat.parallel.mesh import batch_shards, make_mesh
    from jaxchat.train.loop import plan_batch

    meant = config.hardware
    text = f"meant for {meant.devices} x {meant.name}; here {here.devices} x {here.kind}"
    wrong = ""
    if lacks_gpu(config, here):
        wrong = (
            f"the tier is meant for {meant.devices} x {meant.name}, and JAX sees no GPU; where "
            'there is one, run: pip install "jaxchat[cuda]"; without one, take --tier cpu.'
        )
    else:
        try:
            shards = batch_shards(make_mesh(config.mesh))
            for stage in TRAINED:
                plan_batch(getattr(config, stage), config.model.sequence_len, shards, stage)
        except ConfigError as error:
            wrong = str(error)
    return Check("tier", text, (wrong,) if wrong else ())


def check_memory(config: RunConfig, here: Here) -> Check:
    """What the fullest stage takes of a device, predicted, against what there is.

    For a tier that lacks a GPU, what it would take of the one that it is meant for.
    """
    missing = lacks_gpu(config, here)
    run = config if missing else here.configured(config)
    limit = run.hardware.memory_bytes
    peaks = {stage: memory.predict(plan.stage_step(run, stage)).peak for stage in TRAINED}
    fullest = max(peaks, key=lambda stage: peaks[stage])
    of = f"one {run.hardware.name}" if missing else f"the {size(limit)} that it may take"
    text = f"{fullest} is predicted to take {size(peaks[fullest])} of {of}"
    large = [] if missing else [stage for stage in TRAINED if peaks[stage] > limit]
    wrong = tuple(_too_large(run, stage, peaks[stage]) for stage in large)
    facts = {"predicted_bytes": peaks, "limit_bytes": limit}
    return Check("memory", text, wrong, facts=facts)


def _too_large(run: RunConfig, stage: str, peak: float) -> str:
    """A sentence for a stage that does not fit, with the micro_rows that would."""
    limit, step = run.hardware.memory_bytes, plan.stage_step(run, stage)
    rows = step.rows * step.accumulation
    fits = memory.largest_rows(step, rows, limit)
    asked = (
        f"{stage} needs {size(peak)} of each device with {stage}.micro_rows={step.rows}, and a run "
        f"may take {size(limit)}"
    )
    if fits:
        return f"{asked}; give --set {stage}.micro_rows={fits}: the batch of a step stays as it is."
    least = memory.predict(memory.with_rows(step, 1, rows)).peak
    fewer = "" if step.rows == 1 else f"a single row would take {size(least)}: "
    return (
        f"{asked}; {fewer}take a smaller tier, or cut the weights over more devices with --set "
        "mesh.fsdp=N."
    )


def check_disk(config: RunConfig, root: Path) -> Check:
    """What the run takes beside what is there already, against what is free at home."""
    need = plan.plan_disk(config)
    names = [*inputs.chat_names(config), config.data.source]
    cached = [paths.data(root) / name for name in names if name in registry.SOURCES]
    there = sum(map(bytes_in, [*cached, paths.runs(root) / config.name]))
    total = sum(need.values()) + (cache.MARGIN if cached else 0)  # which downloads leave free
    left = max(0.0, total - there)
    free = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists())).free
    wrong = (
        f"{root} has {size(free)} free, and the tier takes {size(left)} more "
        f"({', '.join(f'{name} {size(value)}' for name, value in need.items())}); free some space, "
        "or name a folder on another disk with --home or JAXCHAT_HOME."
    )
    return Check(
        "disk",
        f"{size(free)} free at home; the tier takes {size(total)}, of which {size(there)} are "
        "there",
        (wrong,) if free < left else (),
        facts={"free_bytes": free, "needed_bytes": total, "there_bytes": there},
    )


def bytes_in(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(at) / name).lstat().st_size
            except OSError:  # it is gone meanwhile
                continue
    return total


def check_time(config: RunConfig, here: Here, speed: Speed) -> Check:
    """How long training would take at the measured rate."""
    run = here.configured(config)
    # a CPU's virtual devices share its cores
    devices = 1 if here.platform == "cpu" else here.devices
    hardware = replace(
        run.hardware,
        devices=devices, peak_flops=speed.matmul_flops, utilization=speed.share,
    )  # fmt: skip
    seconds = plan.make_plan(replace(run, hardware=hardware)).seconds
    text = f"about {duration(seconds)} of training, estimated from that rate"
    return Check("time", text, facts={"training_seconds": seconds})
