"""`jaxchat profile`: a trace and its HLO as a page of text, or as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat.config.machine import bf16_peak
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json
from jaxchat.train.profiling.breakdown import Breakdown, break_down
from jaxchat.train.profiling.classes import Operations
from jaxchat.train.profiling.hlo import NO_MODULE, parse
from jaxchat.train.profiling.order import in_order
from jaxchat.train.profiling.request import HLO, RECORD
from jaxchat.train.profiling.trace import find_trace, read_events

MS = 1e6  # nanoseconds


@dataclass(frozen=True)
class Profile:
    """A trace that was read: one device's time."""

    trace: Path
    facts: Mapping[str, Any]  # profile.json; empty for a trace from elsewhere
    device: str
    devices: tuple[str, ...]
    has_hlo: bool
    breakdown: Breakdown

    @property
    def model_flops(self) -> float:
        """FLOP/s one device would need for the model alone; 0 where profile.json is missing."""
        if not self.facts:
            return 0.0
        step = self.facts["step_tokens"] * self.facts["flops_per_token"] / self.facts["devices"]
        return float(step / (self.breakdown.step / 1e9))

    @property
    def tokens_per_second(self) -> float:
        """The rate of all devices together; 0 where profile.json is missing."""
        return float(self.facts.get("step_tokens", 0)) / (self.breakdown.step / 1e9)


def read_profile(path: Path, device: int = 0) -> Profile:
    """Reads a folder that --profile wrote, or any trace. Raises ArtifactError.

    Without step.hlo.txt beside it, operations are classed by their names and have no source lines.
    """
    trace = find_trace(path)
    folder = next((p for p in trace.parents if (p / HLO).exists()), None)
    module = NO_MODULE
    facts: dict[str, Any] = {}
    if folder is not None:
        try:
            module = parse((folder / HLO).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{folder / HLO}: {error}; record the profile again.") from error
        facts = read_json(folder / RECORD) if (folder / RECORD).exists() else {}
    devices = read_events(trace)
    names = tuple(sorted(devices, key=lambda name: (name.split(":")[0] == "cpu", name)))
    if device >= len(names):
        raise ArtifactError(
            f"{trace} has operations of {len(names)} devices ({', '.join(names) or 'none'}); there "
            f"is no number {device}."
        )
    operations = Operations(module)
    try:
        events = in_order(devices[names[device]], module)
        breakdown = break_down(events, operations, module.name)
    except ValueError as error:
        raise ArtifactError(f"{trace}: {error}; record the profile again.") from error
    return Profile(trace, facts, names[device], names, module is not NO_MODULE, breakdown)


def render(profile: Profile, top: int = 20) -> str:
    """The page."""
    parts = profile.breakdown
    sections = [_head(profile), _classes(parts), _lines(parts), _operations(parts, top)]
    return "\n\n".join("\n".join(section) for section in sections)


def _head(profile: Profile) -> Iterator[str]:
    breakdown, facts = profile.breakdown, profile.facts
    count = len(breakdown.steps)
    of = f" of {len(profile.devices)}" if len(profile.devices) > 1 else ""
    what = f"{facts['stage']}, from step {facts['start']}, " if facts else ""
    yield f"{what}{count} executions of {breakdown.module} on {profile.device}{of}"
    if facts:
        kind, devices = facts["device_kind"], facts["devices"]
        yield f"{devices} x {kind}, {facts['step_tokens']:,} tokens a step"
    yield ""
    times = f"{min(breakdown.steps) / MS:,.1f} to {max(breakdown.steps) / MS:,.1f}"
    yield f"{'a step':<16}{breakdown.step / MS:,.1f} ms with host gaps, {times} ms without"
    if facts:
        yield f"{'tokens':<16}{profile.tokens_per_second:,.0f} a second"
    step, flops = breakdown.step / 1e9, breakdown.flops / count
    if flops:
        rate = f"{_flops(flops / step)}/s"
        yield f"{'achieved':<16}{rate} in matrix products, {_flops(flops)} a step"
    if facts:
        peak = bf16_peak(facts["device_kind"])
        share = f", MFU {profile.model_flops / peak:.1%} of the bf16 peak" if peak else ""
        yield f"{'of the model':<16}{_flops(profile.model_flops)}/s on each device{share}"
    if not profile.has_hlo:
        yield f"There is no {HLO} beside the trace: classes are guessed from names."


def _classes(breakdown: Breakdown) -> Iterator[str]:
    count, total = len(breakdown.steps), breakdown.total
    yield f"{'where a step goes':<24}{'ms':>10}{'share':>8}{'busy ms':>11}{'FLOP/s':>11}"
    for kind, (share, busy, flops) in breakdown.by_class().items():
        yield (
            f"{kind:<24}{share / count / MS:>10,.1f}{share / total:>8.1%}"
            f"{busy / count / MS:>11,.1f}{_rate(flops, share):>11}"
        )
    for name, gap in (("gaps within steps", breakdown.within), ("host gaps", breakdown.between)):
        yield f"{name:<24}{gap / count / MS:>10,.1f}{gap / total:>8.1%}"
    yield f"{'all':<24}{total / count / MS:>10,.1f}{1:>8.1%}"


def _lines(breakdown: Breakdown, top: int = 10) -> Iterator[str]:
    """The source lines whose operations took most; one line is many operations, one a layer."""
    shares: dict[str, float] = defaultdict(float)
    flops: dict[str, int] = defaultdict(int)
    for o in breakdown.operations:
        shares[o.operation.source] += o.share
        flops[o.operation.source] += o.operation.flops * o.count
    shares.pop("", None)
    yield f"{'ms':>8}{'share':>7}{'FLOP/s':>11}  source line"
    for source in sorted(shares, key=lambda s: -shares[s])[:top]:
        share = shares[source]
        yield (
            f"{share / len(breakdown.steps) / MS:>8,.1f}{share / breakdown.total:>7.1%}"
            f"{_rate(flops[source], share):>11}  {source}"
        )


def _operations(breakdown: Breakdown, top: int) -> Iterator[str]:
    count, total = len(breakdown.steps), breakdown.total
    shown = breakdown.operations[:top]
    rest = sum(o.share for o in breakdown.operations[top:])
    yield (
        f"{'ms':>8}{'share':>7}{'runs':>6}  {'class':<17}{'FLOP/s':>11}  {'source':<32}  operation"
    )
    for o in shown:
        op = o.operation
        rate = _rate(op.flops * o.count, o.share)
        yield (
            f"{o.share / count / MS:>8,.1f}{o.share / total:>7.1%}{o.count / count:>6.0f}  "
            f"{op.kind:<17}{rate:>11}  {op.source:<32}  {op.name}  {_shorten(op.op_name)}"
        )
    if rest:
        others = len(breakdown.operations) - len(shown)
        yield f"{rest / count / MS:>8,.1f}{rest / total:>7.1%}        {others} others"


def _shorten(scope: str, limit: int = 70) -> str:
    return scope if len(scope) <= limit else f"{scope[: limit - 3]}..."


def _rate(flops: int, nanoseconds: float) -> str:
    """FLOP/s, or nothing where no product is."""
    return _flops(flops / nanoseconds * 1e9).removesuffix("FLOP") if flops else ""


def _flops(value: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}FLOP"
    return f"{value:.0f} FLOP"


def to_json(profile: Profile, top: int = 20) -> dict[str, Any]:
    """The page's figures as JSON; times in milliseconds a step."""
    breakdown = profile.breakdown
    scale = len(breakdown.steps) * MS
    return {
        "trace": str(profile.trace),
        "facts": dict(profile.facts),
        "device": profile.device,
        "module": breakdown.module,
        "step_ms": breakdown.step / MS,
        "steps_ms": [step / MS for step in breakdown.steps],
        "tokens_per_second": profile.tokens_per_second,
        "product_flops_per_step": breakdown.flops / len(breakdown.steps),
        "model_flops_per_second": profile.model_flops,
        "classes": {
            kind: {"ms": share / scale, "busy_ms": busy / scale, "flops": flops}
            for kind, (share, busy, flops) in breakdown.by_class().items()
        },
        "gaps_within_ms": breakdown.within / scale,
        "gaps_between_ms": breakdown.between / scale,
        "operations": [
            {
                "name": o.operation.name, "class": o.operation.kind, "ms": o.share / scale,
                "busy_ms": o.busy / scale, "runs": o.count / len(breakdown.steps),
                "flops": o.operation.flops, "source": o.operation.source,
                "op_name": o.operation.op_name,
            }
            for o in breakdown.operations[:top]
        ],
    }  # fmt: skip
