"""Compute multipliers: what a recipe's bits per byte would cost with another recipe.

The frontier of a ladder is a least-squares polynomial of ln(bits per byte) over ln(FLOPs), through
all its runs: a straight line (`degree` 1, log-linear), or a parabola. The multiplier of a rung of
another ladder is the FLOPs at which the frontier has the rung's mean bits per byte, over the
rung's own FLOPs: above 1, the other recipe needs less.

Its interval is one of inverse regression (calibration; Draper and Smith, 1998, section 3.2) in
ln(multiplier), by Student's t. Noise is that of the seeds, pooled over a ladder's depths and
estimated for each ladder by itself; the degrees of freedom are Welch's and Satterthwaite's (1946).
To that is added the most by which the frontier misses one of its own rungs: where the curve is no
line, seeds alone would find differences that are the line's. Of n comparisons each has the level
1 - 0.05 / n (Bonferroni), so that all intervals hold together in 95% of cases. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

LEVEL = 0.95  # of all intervals together
EDGE = 1.1  # a frontier is read up to this factor of FLOPs beyond its outermost rungs

Verdict = Literal["less", "more", "unclear", "above", "below", "beyond", "unknown"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rung:
    """The runs of one depth: what each costs, and what came of each seed."""

    depth: int
    flops: float  # of one run
    bits: tuple[float, ...]  # bits per byte, one a seed
    seconds: tuple[float, ...]  # wall time of training's steps, likewise


@dataclass(frozen=True)
class Multiplier:
    """FLOPs that the baseline needs, over those of a rung, at the rung's bits per byte.

    `verdict`: the recipe needs "less" or "more" FLOPs; it is "unclear", as the interval contains
    1; bits per byte are "above" or "below" those of all the baseline's rungs ("beyond": of some
    rungs the one, of others the other); or it is "unknown", as there are too few seeds or the
    frontier is too flat for an interval.
    """

    depth: int | None  # None: the geometric mean over all rungs that are not beyond
    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    time: float | None = None  # likewise of wall time, without an interval


@dataclass(frozen=True)
class Frontier:
    """The fitted polynomial, about the middle of ln(FLOPs)."""

    coefficients: Array  # lowest power first
    covariance: Array  # of the coefficients, for noise of variance 1
    middle: float  # ln(FLOPs)
    low: float  # ln(FLOPs) of the outermost rungs
    high: float
    noise: float  # variance of ln(bits per byte) between seeds; NaN where there is one seed
    freedom: int  # its degrees of freedom
    misfit: float  # the most that it misses a rung's mean by, in ln(FLOPs)
    time: Array  # line of ln(seconds) over ln(FLOPs), lowest power first

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return len(self.coefficients) - 1

    @property
    def ends(self) -> tuple[float, float]:
        """ln(FLOPs) between which the frontier is read."""
        return self.low - math.log(EDGE), self.high + math.log(EDGE)

    def bits(self, x: float) -> float:
        """ln(bits per byte) at ln(FLOPs) = x."""
        return float(powers(x - self.middle, self.degree) @ self.coefficients)

    def slope(self, x: float) -> float:
        """The derivative of `bits`."""
        return float(slopes(x - self.middle, self.degree) @ self.coefficients)

    def solve(self, y: float) -> float | None:
        """ln(FLOPs) at which ln(bits per byte) is y, by bisection; None beyond the rungs."""
        low, high = self.ends
        if not self.bits(high) <= y <= self.bits(low):
            return None
        for _ in range(80):
            x = (low + high) / 2
            low, high = (x, high) if self.bits(x) > y else (low, x)
        return (low + high) / 2


def powers(z: float, degree: int) -> Array:
    """1, z, z^2, ..."""
    return np.asarray([z**n for n in range(degree + 1)])


def slopes(z: float, degree: int) -> Array:
    """The derivatives of `powers`."""
    return np.asarray([n * z ** (n - 1) if n else 0.0 for n in range(degree + 1)])


def fit(rungs: Sequence[Rung], degree: int = 1) -> Frontier:
    """The frontier of some rungs, each run counting alike.

    The degree is at most the number of rungs less 1. Raises ValueError for fewer than two rungs,
    and where bits per byte do not fall with FLOPs.
    """
    if len({rung.flops for rung in rungs}) < 2:
        raise ValueError("a frontier needs rungs of two depths")
    runs = [(math.log(rung.flops), math.log(b)) for rung in rungs for b in rung.bits]
    x, y = np.asarray(runs).T
    degree = min(degree, len(rungs) - 1)
    middle = float(x.mean())
    design = np.stack([powers(z, degree) for z in x - middle])
    covariance = np.asarray(np.linalg.inv(design.T @ design), np.float64)
    noise, freedom = spread(rungs)
    seconds = [math.log(s) for rung in rungs for s in rung.seconds]
    times = np.asarray(np.polynomial.polynomial.polyfit(x, np.asarray(seconds), 1), np.float64)
    found = Frontier(
        covariance @ design.T @ y, covariance, middle, float(x.min()), float(x.max()),
        noise, freedom, 0.0, times,
    )  # fmt: skip
    if max(map(found.slope, found.ends)) >= 0:
        raise ValueError("bits per byte do not fall with FLOPs")
    misses = [
        abs((mean_log(rung) - found.bits(at)) / found.slope(at))
        for rung in rungs
        for at in [math.log(rung.flops)]
    ]
    return replace(found, misfit=max(misses))


def mean_log(rung: Rung) -> float:
    """The mean of ln(bits per byte) over seeds."""
    return math.fsum(map(math.log, rung.bits)) / len(rung.bits)


def spread(rungs: Sequence[Rung]) -> tuple[float, int]:
    """The variance of ln(bits per byte) between seeds, pooled over depths; its freedom."""
    freedom = sum(len(rung.bits) - 1 for rung in rungs)
    squares = [(math.log(b) - mean_log(rung)) ** 2 for rung in rungs for b in rung.bits]
    return (math.fsum(squares) / freedom if freedom else math.nan), freedom


def multipliers(
    frontier: Frontier, rungs: Sequence[Rung], comparisons: int | None = None
) -> list[Multiplier]:
    """The multiplier of each rung, and of all together where there are several.

    `comparisons` is the number that the level is corrected for (default: those made here).
    """
    count = comparisons or number_of(rungs)
    level = 1 - (1 - LEVEL) / count
    spots = [(rung, frontier.solve(mean_log(rung))) for rung in rungs]
    within = [(rung, x) for rung, x in spots if x is not None]
    found = [
        Multiplier(rung.depth, _side(frontier, rung))
        if x is None
        else _multiplier(frontier, rungs, [(rung, x)], level, rung.depth)
        for rung, x in spots
    ]
    if len(rungs) > 1 and within:
        found.append(_multiplier(frontier, rungs, within, level, None))
    elif len(rungs) > 1:
        sides = {one.verdict for one in found}
        found.append(Multiplier(None, sides.pop() if len(sides) == 1 else "beyond"))
    return found


def _side(frontier: Frontier, rung: Rung) -> Verdict:
    """Where the bits per byte of a rung are that the frontier does not have."""
    return "above" if mean_log(rung) > frontier.bits(frontier.ends[0]) else "below"


def number_of(rungs: Sequence[Rung]) -> int:
    """The comparisons that `multipliers` makes, however they come out."""
    return len(rungs) + (len(rungs) > 1)


def _multiplier(
    frontier: Frontier,
    rungs: Sequence[Rung],
    spots: Sequence[tuple[Rung, float]],
    level: float,
    depth: int | None,
) -> Multiplier:
    """The geometric mean of the multipliers of some rungs, whose FLOPs the baseline needs x."""
    middle = math.fsum(x - math.log(rung.flops) for rung, x in spots) / len(spots)
    time = math.fsum(_ln_time(frontier, rung, x) for rung, x in spots) / len(spots)
    value, times = math.exp(middle), math.exp(time)
    half = _half(frontier, rungs, spots, level)
    if half is None:
        return Multiplier(depth, "unknown", value, time=times)
    low, high = math.exp(middle - half), math.exp(middle + half)
    verdict: Verdict = "less" if low > 1 else "more" if high < 1 else "unclear"
    return Multiplier(depth, verdict, value, low, high, times)


def _ln_time(frontier: Frontier, rung: Rung, x: float) -> float:
    own = math.fsum(map(math.log, rung.seconds)) / len(rung.seconds)
    return float(powers(x, 1) @ frontier.time) - own


def _half(
    frontier: Frontier, rungs: Sequence[Rung], spots: Sequence[tuple[Rung, float]], level: float
) -> float | None:
    """Half the width of the interval of ln(multiplier); None where there can be none."""
    noise, freedom = spread(rungs)
    if not freedom or not frontier.freedom:
        return None
    count, degree = len(spots), frontier.degree
    gradient, own = np.zeros(degree + 1), 0.0  # of the mean over spots, by coefficient and rung
    for rung, x in spots:
        slope = frontier.slope(x)
        gradient += powers(x - frontier.middle, degree) / slope / count
        own += noise / len(rung.bits) / (slope * count) ** 2
    theirs = frontier.noise * float(gradient @ frontier.covariance @ gradient)
    total = own + theirs
    if not total:
        return frontier.misfit
    welch = total**2 / (own**2 / freedom + theirs**2 / frontier.freedom)
    t = student_t(level, welch)
    flat = max(t**2 * _slope_variance(frontier, x) / frontier.slope(x) ** 2 for _, x in spots)
    if flat >= 1:  # the slope itself may be none
        return None
    # no narrower than Fieller's exact interval
    return t * math.sqrt(total) / (1 - flat) + frontier.misfit


def _slope_variance(frontier: Frontier, x: float) -> float:
    by = slopes(x - frontier.middle, frontier.degree)
    return frontier.noise * float(by @ frontier.covariance @ by)


def student_t(level: float, freedom: float) -> float:
    """The t for which |T| <= t with probability `level`, of Student's distribution.

    With t = sqrt(freedom) tan(a) the density is cos(a) ** (freedom - 1), which is summed here by
    the trapezium rule: to six digits for a `freedom` from 1 to 10,000.
    """
    angles = np.linspace(0.0, math.pi / 2, 1 << 15)
    density = np.cos(angles) ** (max(freedom, 1.0) - 1)
    summed = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = float(np.interp(level, summed / summed[-1], angles))
    return math.sqrt(max(freedom, 1.0)) * math.tan(angle)
