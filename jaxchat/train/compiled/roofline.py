"""How long a step takes by what it does: products, attention and bytes, each at its ceiling.

On an H100 no kernel waited for another, and each was at the hardware's limit
(docs/profiling.md), so that the sum of the three is the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxchat.train.compiled.counts import Counts
from jaxchat.train.compiled.targets import Target


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
