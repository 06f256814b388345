"""What CORE a tier of preset modern should reach, from what others have published.

A line through the published runs of that architecture on ClimbMix, CORE over the logarithm of the
base model's FLOPs, and by how much it misses each run when it is fitted without that run. The runs
are their authors' (nanochat's dev/LEADERBOARD.md at 92d63d4; its proposals #563, #733, #830; the
JAX port tucan9389/nanochat-jax), read on 2026-11-27; nothing of this was run here. FLOPs are
counted by our plan for that depth, ratio and vocabulary.

    python bench/expected_core.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxchat.config import loading
from jaxchat.runs.plan.plan import make_plan

MIDDLE = 19.5  # log10 of FLOPs, where the line's constant is stated


@dataclass(frozen=True)
class Run:
    """A published run: the mean CORE of `runs` with these settings."""

    name: str
    depth: int
    ratio: float  # training tokens per scaling parameter
    core: float
    runs: int
    vocab_size: int = 32_768

    @property
    def flops(self) -> float:
        """FLOPs of the base model's training."""
        settings = (
            f"run.depth={self.depth}",
            f"run.data_ratio={self.ratio}",
            f"tokenizer.vocab_size={self.vocab_size}",
        )
        config = loading.load(loading.find_tier("gpt2"), settings)
        return float(make_plan(config).stages[0].flops)


PUBLISHED = (
    Run("#830, d22, August 2026", 22, 9.4, 0.2618, 6, 49_152),
    Run("#733, d22, April 2026", 22, 11.05, 0.263, 3),
    Run("leaderboard run 6, d24, March 2026", 24, 8, 0.2626, 5),
    Run("leaderboard run 5, d24, March 2026", 24, 8.7, 0.2690, 5),
    Run("JAX port on a v6e-8, d24, 2026", 24, 12, 0.2741, 1),
    Run("#563, d26, February 2026", 26, 8.25, 0.2767, 1),
)


@dataclass(frozen=True)
class Line:
    """CORE = at_middle + slope (log10(FLOPs) - 19.5)."""

    at_middle: float
    slope: float  # a decade of FLOPs

    def __call__(self, flops: float) -> float:
        """The CORE at this compute."""
        return self.at_middle + self.slope * (math.log10(flops) - MIDDLE)


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The least-squares line through (FLOPs, CORE)."""
    flops, core = zip(*points, strict=True)
    slope, at_middle = np.polyfit(np.log10(flops) - MIDDLE, core, 1)
    return Line(float(at_middle), float(slope))


def left_out(points: Sequence[tuple[float, float]]) -> list[float]:
    """CORE of each point less what the line through the others says."""
    return [
        core - fit([*points[:i], *points[i + 1 :]])(flops) for i, (flops, core) in enumerate(points)
    ]


def main() -> None:
    """Prints the runs, the line, and what it says of our tiers of preset modern."""
    points = [(run.flops, run.core) for run in PUBLISHED]
    line, missed = fit(points), left_out(points)
    print(f"{'published':36} {'FLOPs':>9} {'CORE':>7} {'runs':>5} {'left out':>9}")
    for run, (flops, core), miss in zip(PUBLISHED, points, missed, strict=True):
        print(f"{run.name:36} {flops:9.2e} {core:7.4f} {run.runs:5} {miss:+9.4f}")
    rms = math.sqrt(sum(miss**2 for miss in missed) / len(missed))
    print(f"\nCORE = {line.at_middle:.4f} + {line.slope:.4f} log10(FLOPs / 10^{MIDDLE}); ", end="")
    print(f"a run that is left out is missed by {rms:.4f} (root mean square)\n")
    largest = max(flops for flops, _ in points)
    print(f"{'tier':12} {'FLOPs':>9} {'CORE':>6}  beyond the largest published run")
    for tier, path in loading.tiers().items():
        config = loading.load(path)
        if config.preset == "modern":
            flops = make_plan(config).stages[0].flops
            print(f"{tier:12} {flops:9.2e} {line(flops):6.3f}  {flops / largest:.1f} times")


if __name__ == "__main__":
    main()
