"""How long a step takes by what it does: products, attention and bytes, each at its ceiling.

On an H100 no kernel waited for another, and each was at the hardware's limit
(docs/profiling.md), so that the sum of the three is the step.

An engine's kernels are too small for that: there each takes LAUNCH at least.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxchat.train.compiled.counts import ATTENTION, ELEMENTWISE, PRODUCT, Counts, Kernel
from jaxchat.train.compiled.targets import Target

# Seconds of the shortest kernel. Fixed on d20 modern's decoding on an H100 (docs/log.md,
# 2026-11-27): 2.07 ms of one row, in the 407 kernels that are counted in its program (0.11.2). Of 8
# rows it gives 1.88 ms (measured: 1.65), of 64 2.45 (2.42).
LAUNCH = 4.9e-6


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device."""

    products: float
    attention: float
    elementwise: float

    @property
    def seconds(self) -> float:
        """Of the whole step, if collectives run beside it."""
        return self.products + self.attention + self.elementwise

    def mfu(self, model_flops: float, target: Target) -> float:
        """The share of the bf16 peak, for a step of `model_flops` on one device."""
        return model_flops / (self.seconds * target.peak)


def roofline(counts: Counts, target: Target) -> Roofline:
    """The predicted time, of bytes by the fine count and with the separate tanh pass."""
    wide = counts.product_flops - counts.fp8_flops
    fp8 = counts.fp8_flops / target.fp8 if counts.fp8_flops else 0.0
    return Roofline(
        products=wide / target.products + fp8,
        attention=counts.attention_flops / target.scores + counts.attention_bytes / target.attended,
        elementwise=(counts.fine + counts.tanh) / target.elementwise,
    )


def bound(counts: Counts, target: Target) -> float:
    """Seconds that no step takes less than where products, attention and bytes come one after the
    other: by the peaks of the data sheet, which no program reaches.
    """
    wide = counts.product_flops - counts.fp8_flops + counts.attention_flops
    fp8 = counts.fp8_flops / target.fp8_peak if counts.fp8_flops else 0.0
    moved = counts.fine + counts.tanh + counts.attention_bytes
    return wide / target.peak + fp8 + moved / target.bandwidth


def small_kernels(kernels: Iterable[Kernel], target: Target, steps: int = 1) -> Roofline:
    """The predicted time of one of an engine's `steps`, in whose kernels no time is below LAUNCH.

    Products of few rows are bound by the bytes of their matrices.
    """
    seconds = dict.fromkeys((PRODUCT, ATTENTION, ELEMENTWISE), 0.0)
    for kernel in kernels:
        work = max(kernel.flops / target.products, kernel.fine / target.elementwise)
        if kernel.kind == ATTENTION:
            work = kernel.flops / target.scores + kernel.fine / target.attended
        seconds[kernel.kind] += kernel.times * max(LAUNCH, work) / steps
    return Roofline(seconds[PRODUCT], seconds[ATTENTION], seconds[ELEMENTWISE])
