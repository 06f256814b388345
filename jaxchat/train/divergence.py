"""Divergence detection, and skipping of the offending batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxchat.paths import atomic_open

HISTORY = 50  # steps whose mean loss a spike is measured against


class DivergenceError(FloatingPointError):
    """A step whose loss or gradient is not finite, or whose loss is a spike."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


class SpikeDetector:
    """Checks the metrics of every step, in order.

    `spike` is the factor by which a loss must exceed the mean of the last HISTORY losses to count
    as divergence (0: never). `losses` are those of earlier steps, so that a stage that is resumed
    judges like one that was not interrupted.
    """

    def __init__(self, spike: float, losses: Iterable[float] = ()) -> None:
        self._spike = spike
        self._losses = deque(losses, HISTORY)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises DivergenceError, with the figures."""
        loss = metrics["loss"]
        for name, value in {"loss": loss, **metrics}.items():  # the loss first: it is best known
            if not math.isfinite(value):
                label = "gradient's norm" if name == "grad_norm" else name
                raise DivergenceError(step, f"the {label} of step {step} is {value}")
        if self._spike and len(self._losses) == HISTORY:
            mean = sum(self._losses) / HISTORY
            if loss > self._spike * mean:
                raise DivergenceError(
                    step,
                    f"the loss of step {step} is {loss:.3f}, more than {self._spike:g} times the "
                    f"mean of the {HISTORY} before, {mean:.3f}",
                )
        self._losses.append(loss)


def data_index(step: int, skipped: Collection[int]) -> int:
    """The index of a step's batch: the batches in order without those `skipped`."""
    index = step
    for left_out in sorted(skipped):
        index += left_out <= index
    return index


def save_batch(folder: Path, step: int, batch: Mapping[str, Any]) -> Path:
    """Saves this process's part of a batch; returns the file, which `numpy.load` reads."""
    of = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
    path = folder / f"diverged-{step}{of}.npz"
    with atomic_open(path, "wb") as file:
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in batch.items()}
        np.savez(file, **arrays)
    return path
