"""`jaxchat doctor --compile`: a tier's step on devices that are not here, by its program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxchat.config import memory
from jaxchat.config.derive import flops_per_token
from jaxchat.config.schema import RunConfig
from jaxchat.runs.plan import plan
from jaxchat.runs.tables import size, table
from jaxchat.train.compiled.program import Program, compile_step
from jaxchat.train.compiled.roofline import Roofline, roofline
from jaxchat.train.compiled.targets import TARGETS, Target

FORMAT = "jaxchat-compiled-1"


@dataclass(frozen=True)
class Compiled:
    """A stage's step on a kind of device."""

    tier: str
    stage: str
    kind: str  # of TARGETS
    devices: int
    program: Program
    predicted: memory.Memory  # before it was compiled
    time: Roofline | None  # None for a TPU, whose programs are not counted
    mfu: float

    @property
    def target(self) -> Target:
        """The kind of device."""
        return TARGETS[self.kind]

    @property
    def fits(self) -> bool:
        """Whether a device has the memory, by XLA's plan."""
        return self.program.memory <= self.target.usable

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        program, time = self.program, self.time
        predicted = {**asdict(self.predicted), "peak": self.predicted.peak}
        return {
            "format": FORMAT,
            "tier": self.tier, "stage": self.stage, "kind": self.kind, "devices": self.devices,
            "fits": self.fits, "usable_bytes": int(self.target.usable),
            "memory_bytes": program.memory, "argument_bytes": program.arguments,
            "temporary_bytes": program.temporaries, "predicted_bytes": predicted,
            "compile_seconds": program.seconds, "counts": program.counts.to_json(),
            "ceilings": self.target.source,
            "seconds": time and {**asdict(time), "step": time.seconds}, "mfu": self.mfu,
        }  # fmt: skip


def compile_tier(config: RunConfig, tier: str, kind: str, stage: str = "base") -> Compiled:
    """Compiles a stage's step; see `train.compiled.program` for what it raises."""
    target, devices = TARGETS[kind], config.hardware.devices
    hardware = replace(
        config.hardware, name=target.name, peak_flops=target.peak, memory_bytes=target.memory,
        compute_bytes=memory.WIDE // 2,
    )  # fmt: skip
    config = replace(config, hardware=hardware)
    program = compile_step(config, target, stage)
    train = getattr(config, stage)
    time = roofline(program.counts, target) if target.platform == "gpu" else None
    flops = flops_per_token(config.model) * train.batch_tokens / devices
    return Compiled(
        tier, stage, kind, devices, program,
        memory.predict(plan.stage_step(config, stage)),
        time, time.mfu(flops, target) if time else 0.0,
    )  # fmt: skip


def render(found: Compiled) -> str:
    """Tables for people."""
    program, target = found.program, found.target
    title = f"{found.stage} of tier {found.tier} on {found.devices} x {target.name}"
    verdict = "fits" if found.fits else "does NOT fit"
    counted = found.program.counts.parts
    parts = [
        (name, f"{kernels:,}", size(amount))
        for name, (kernels, amount) in sorted(counted.items(), key=lambda item: -item[1][1])
    ]
    return "\n".join([
        f"{title}: {verdict}; compiled in {program.seconds:.0f} s, nothing was run",
        "", *table([("memory of a device", "XLA", "predicted"), *_memory(found)]),
        "", *table([("work of a step", "number", "amount"), *_work(found)]),
        "", *table([("elementwise, by part", "kernels", "bytes"), *parts]),
        "", *_time(found),
    ])  # fmt: skip


def _memory(found: Compiled) -> Iterator[tuple[str, ...]]:
    program, predicted = found.program, found.predicted
    yield "weights, optimizer, batch", size(program.arguments), size(predicted.arguments)
    working = predicted.peak - predicted.arguments
    yield "while it runs", size(program.temporaries), size(working)
    yield "in all", size(program.memory), size(predicted.peak)
    usable = found.target.usable
    shares = (f"{amount / usable:.0%}" for amount in (program.memory, predicted.peak))
    yield f"of {size(usable)}", *shares


def _work(found: Compiled) -> Iterator[tuple[str, ...]]:
    counts = found.program.counts

    def tera(flops: int) -> str:
        return f"{flops / 1e12:.1f} TFLOP"

    yield "products", f"{counts.products:,}", tera(counts.product_flops)
    yield "  in fp8", f"{counts.fp8_products:,}", tera(counts.fp8_flops)
    yield "  recomputed to save memory", f"{counts.recomputed:,}", tera(counts.recomputed_flops)
    yield "attention calls", f"{counts.attention_calls:,}", tera(counts.attention_flops)
    yield "elementwise kernels", f"{counts.kernels:,}", size(counts.fine)
    yield "  with whole operands", "", size(counts.naive)
    yield "  tanh of the logits alone", "", size(counts.tanh)
    for one in counts.collectives:
        yield one.name, f"{one.times}", f"{size(one.size)}, {one.kernels} kernels meanwhile"


def _time(found: Compiled) -> list[str]:
    time = found.time
    if time is None:
        return ["No time is predicted for a TPU: its programs are not counted."]
    parts = (
        f"products {time.products * 1e3:.0f}, attention {time.attention * 1e3:.0f}, "
        f"elementwise {time.elementwise * 1e3:.0f}"
    )
    source = "measured on one" if found.target.source == "measured" else "NOT measured: data sheet"
    return [
        f"About {time.seconds * 1e3:.0f} ms a step ({parts}), {found.mfu:.1%} MFU, if collectives "
        f"run beside it; ceilings {source}."
    ]
