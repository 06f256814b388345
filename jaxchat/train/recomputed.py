"""What XLA does twice in a step to save memory: it says nothing itself."""

from __future__ import annotations

from jaxchat.config import memory
from jaxchat.train.compiled.counts import count


def recomputation(stage: str, text: str, rows: int, accumulation: int) -> str:
    """A sentence for a step whose program `text` computes products twice; "" for any other.

    `rows` are those of a device's micro-batch, of `accumulation`. To find that there is nothing to
    say takes milliseconds.
    """
    if "remat" not in text:  # as XLA calls its copies
        return ""
    counts = count(text)
    if not counts.recomputed:
        return ""
    share = counts.recomputed_flops / counts.product_flops
    found = (
        f"{stage}: for lack of memory XLA computes {counts.recomputed} of a step's "
        f"{counts.products} products twice, {share:.1%} of its FLOPs"
    )
    fewer = memory.fewer_rows(rows, rows * accumulation)
    if not fewer:
        return f"{found}; more devices with --set mesh.fsdp=N would save the memory for that."
    # d20 modern, 32 rows in 446.2 ms, 2 x 16 in 453.0 (docs/log.md, 2026-11-27)
    return (
        f"{found}; --set {stage}.micro_rows={fewer} saves the memory for that, the same batch "
        f"accumulated {rows // fewer} times as often (at 1.4% that was 1.5% slower on an H100)."
    )
