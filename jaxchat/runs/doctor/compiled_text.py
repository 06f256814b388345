"""What `jaxchat doctor --compile` prints: one table of all programs, and tables of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from jaxchat.progress import duration
from jaxchat.runs.doctor.compiled import DECODE, PREFILL, STEP, Compiled
from jaxchat.runs.tables import size, table
from jaxchat.train.compiled.counts import Collective
from jaxchat.train.compiled.program import StepShape
from jaxchat.train.compiled.roofline import LAUNCH
from jaxchat.train.compiled.targets import MEASURED, Target

WORKING = ("weights", "gradients", "activations", "logits")  # of `memory.Memory`, beside `update`


def render(found: Sequence[Compiled]) -> str:
    """All programs: an overview, then each."""
    parts = [overview(found), *map(_details, found)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def overview(found: Sequence[Compiled]) -> list[str]:
    """A line a program."""
    first = found[0]
    large = [title(one) for one in found if not one.fits]
    verdict = "all fits" if not large else f"does NOT fit: {', '.join(large)}"
    seconds = sum(
        one.program.seconds + (one.program.beside.seconds if one.program.beside else 0)
        for one in found
    )
    rows = [
        ("program", "runs in", "of a device", "predicted", "a step", "MFU", "kernels", "compiled")
    ]
    for one in found:
        time = f"{one.time.seconds * 1e3:,.4g} ms" if one.time else ""
        rows.append((
            title(one), ", ".join(one.work.stages), size(one.memory),
            size(one.predicted["peak"] + _shared(one)), time, f"{one.mfu:.1%}" if time else "",
            f"{one.launches:,.0f}", f"{one.program.seconds:.0f} s",
        ))  # fmt: skip
    devices = max(one.devices for one in found)
    return [
        f"Tier {first.tier} on {devices} x {first.target.name}: {verdict}; compiled in "
        f"{duration(seconds)}, nothing was run",
        *table(rows, left=2),
        *_ceilings(first.target),
    ]


def _shared(one: Compiled) -> int:
    """What others hold beside a step; an engine's own are in its prediction."""
    return one.others if one.work.what == STEP else 0


def _ceilings(target: Target) -> Iterator[str]:
    if target.platform != "gpu":
        yield "  A step's time is NOT validated: the data sheet's peaks in the shares that an H100"
        yield "  reaches, for the products, attention and bytes that are counted."
        return
    source = "measured on one" if target.source == MEASURED else "NOT measured: data sheet"
    yield "  A step takes its products', attention's and bytes' time, if collectives run beside it;"
    yield f"  in an engine each kernel takes {LAUNCH * 1e6:g} us at least. Ceilings {source}."


def title(one: Compiled) -> str:
    """A program's name, with its sizes on a device."""
    shape = one.work.shape
    if isinstance(shape, StepShape):
        times = f" x {shape.accumulation}" if shape.accumulation > 1 else ""
        return f"step of {shape.device_rows} x {shape.tokens:,}{times}"
    if one.work.what == PREFILL:
        return f"prefill of {shape.prompt:,}"
    return f"decode of {shape.slots} x {shape.positions:,}"


def _details(one: Compiled) -> list[str]:
    heading = f"{title(one)[0].upper()}{title(one)[1:]}, in {', '.join(one.work.stages)}"
    return [
        heading,
        "", *table([("memory of a device", "XLA", "predicted"), *_memory(one)]),
        "", *table([("work of a step", "number", "amount"), *_work(one)]),
        *_collectives(one),
        "", *table([("elementwise, by part", "kernels", "fine", "naive"), *_parts(one)]),
        *_beside(one),
        *_time(one),
    ]  # fmt: skip


def _parts(one: Compiled) -> list[tuple[str, ...]]:
    counts, steps = one.program.counts, one.steps
    return [
        (name, f"{kernels / steps:,.0f}", size(amount / steps),
         size(counts.naive_parts.get(name, amount) / steps))
        for name, (kernels, amount) in sorted(counts.parts.items(), key=lambda part: -part[1][1])
    ]  # fmt: skip


def _memory(one: Compiled) -> Iterator[tuple[str, ...]]:
    program, predicted = one.program, one.predicted
    for name, amount in program.held.items():
        yield name, size(amount), size(predicted[name]) if name in predicted else ""
    working = predicted["peak"] - sum(predicted.get(name, 0) for name in program.held)
    yield "while it runs", size(program.temporaries), size(working) if working else ""
    if "update" in predicted:
        if sum(predicted[name] for name in WORKING) >= predicted["update"]:
            yield from ((f"  {name}", "", size(predicted[name])) for name in WORKING)
        else:
            yield "  update", "", size(predicted["update"])
    others = _shared(one)
    if others:
        yield "the engine that samples", size(others), size(others)
    peak = predicted["peak"] + others
    yield "in all", size(one.memory), size(peak)
    usable = one.target.usable
    yield f"of {size(usable)}", *(f"{amount / usable:.0%}" for amount in (one.memory, peak))


def _work(one: Compiled) -> Iterator[tuple[str, ...]]:
    counts, steps, trains = one.program.counts, one.steps, one.work.what == STEP

    def line(name: str, number: int, amount: str) -> tuple[str, ...]:
        return name, f"{number / steps:,.0f}", amount

    def tera(flops: int) -> str:
        return f"{flops / steps / 1e12:,.4g} TFLOP"

    yield line("products", counts.products, tera(counts.product_flops))
    if counts.fp8_products:
        yield line("  in fp8", counts.fp8_products, tera(counts.fp8_flops))
    if trains:
        again = tera(counts.recomputed_flops)
        yield line("  recomputed to save memory", counts.recomputed, again)
    yield line("attention calls", counts.attention_calls, tera(counts.attention_flops))
    yield line("elementwise kernels", counts.kernels, size(counts.fine / steps))
    yield "  with whole operands (naive)", "", size(counts.naive / steps)
    if trains and counts.tanh:
        yield "  tanh of the logits alone, on a card", "", size(counts.tanh)
    yield line("all kernels but collectives", counts.launches, "")


def _collectives(one: Compiled) -> list[str]:
    """Those of one kind as a line: what they move, and what the schedule has meanwhile."""
    kinds: dict[str, list[Collective]] = defaultdict(list)
    for collective in one.program.counts.collectives:
        kinds[re.sub(r"(-start)?[.\d]*$", "", collective.name)].append(collective)
    if not kinds:
        return []
    rows = [("collectives", "number", "bytes", "meanwhile", "without any")]
    for kind, found in kinds.items():
        meanwhile = sum(_seconds(each, one.target) * each.times for each in found)
        rows.append((
            kind, f"{sum(each.times for each in found)}",
            size(sum(each.size * each.times for each in found)),
            f"{sum(each.kernels * each.times for each in found):,} kernels, "
            f"{meanwhile * 1e3:.1f} ms",
            f"{sum(each.times for each in found if not each.kernels)}",
        ))  # fmt: skip
    return ["", *table(rows)]


def _seconds(one: Collective, target: Target) -> float:
    return one.flops / target.products + one.bytes / target.elementwise


def _beside(one: Compiled) -> list[str]:
    """XLA's other form of the program."""
    beside = one.program.beside
    if beside is None:
        return []
    forms = (one.program, beside)

    def line(name: str, of: Sequence[str]) -> tuple[str, ...]:
        return (name, *of)

    def bytes_of(name: str) -> list[str]:
        return [size(int(getattr(form.counts, name))) for form in forms]

    times = [one.time_of(form) for form in forms]
    rows = [
        ("XLA's two forms", "default", "xla_gpu_enable_triton_gemm=false"),
        line("a step", [f"{time.seconds * 1e3:,.0f} ms" for time in times if time]),
        line("elementwise kernels", [f"{form.counts.kernels:,}" for form in forms]),
        line("  fine", bytes_of("fine")),
        line("  naive", bytes_of("naive")),
        line("  tanh on a card", bytes_of("tanh")),
        line("products recomputed", [f"{form.counts.recomputed:,}" for form in forms]),
        line("memory of a device", [size(form.memory + one.others) for form in forms]),
        line("compiled in", [f"{form.seconds:.0f} s" for form in forms]),
    ]
    return ["", *table(rows)]


def _time(one: Compiled) -> list[str]:
    time, shape = one.time, one.work.shape
    if time is None:
        return []
    parts = (
        f"products {time.products * 1e3:,.3g}, attention {time.attention * 1e3:,.3g}, elementwise "
        f"{time.elementwise * 1e3:,.3g}"
    )
    line = f"About {time.seconds * 1e3:,.4g} ms a step ({parts}), {one.mfu:.1%} MFU"
    if isinstance(shape, StepShape):
        return ["", f"{line}."]
    moved = sum(kernel.times * kernel.fine for kernel in one.program.kernels) / one.steps
    alone = moved / one.target.elementwise
    bytes_alone = f"Its {size(moved)} alone would take {alone * 1e3:.2g} ms."
    rate = f"{shape.slots / time.seconds:,.0f} tokens a second. "
    return ["", f"{line}.", f"{rate if one.work.what == DECODE else ''}{bytes_alone}"]
