"""Paired differences of a variant from the baseline, with Student's interval.

A pair is two runs with one seed: the same initial values and the same rows in the same order, as
far as the variant has them. What both have in common leaves the difference, so it is sharper than
that of independent runs; how much is measured, not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxchat.runs.ladder.frontier import student_t

LEVEL = 0.95  # of all intervals together


@dataclass(frozen=True)
class Difference:
    """The mean over depths of the mean difference of ln(bits per byte), variant less baseline."""

    mean: float
    error: float  # its standard error; nan: there are no two pairs at any depth
    deviation: float  # of one pair's difference within a depth
    freedom: int
    pairs: int

    def half(self, comparisons: int) -> float:
        """Half the width of the interval, of the level that `comparisons` leave to each."""
        if not self.freedom or math.isnan(self.error):
            return math.inf
        return student_t(1 - (1 - LEVEL) / comparisons, self.freedom) * self.error

    def verdict(self, comparisons: int) -> str:
        """ "better", "worse" or "unclear": whether the interval contains 0."""
        half = self.half(comparisons)
        if math.isinf(self.mean):
            return "diverged"
        return "better" if self.mean + half < 0 else "worse" if self.mean - half > 0 else "unclear"

    @property
    def t(self) -> float:
        """|mean| in standard errors."""
        return abs(self.mean) / self.error if self.error else 0.0


def difference(pairs: Mapping[int, Sequence[tuple[float, float]]]) -> Difference:
    """Of (bits per byte of the variant, of the baseline) by depth, each depth counting alike.

    The variance of a pair's difference is pooled over the depths, never over other variants.
    """
    logs = {d: [math.log(v) - math.log(b) for v, b in found] for d, found in pairs.items()}
    means = {depth: math.fsum(found) / len(found) for depth, found in logs.items()}
    mean = math.fsum(means.values()) / len(means)
    count, freedom = sum(map(len, logs.values())), sum(len(found) - 1 for found in logs.values())
    if not freedom or not math.isfinite(mean):
        return Difference(mean, math.nan, math.nan, freedom, count)
    squares = math.fsum((x - means[depth]) ** 2 for depth, found in logs.items() for x in found)
    deviation = math.sqrt(squares / freedom)
    share = math.fsum(1 / len(found) for found in logs.values()) / len(logs) ** 2
    return Difference(mean, deviation * math.sqrt(share), deviation, freedom, count)
