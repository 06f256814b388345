"""Compute multipliers of made-up ladders: known ones are found, and intervals hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jaxchat.runs.ladder import frontier
from jaxchat.runs.ladder.frontier import Multiplier, Rung, fit, multipliers, student_t

Law = Callable[[float], float]


def line(flops: float) -> float:
    """A power law, which is a straight line in logarithms."""
    return float(8 * flops**-0.05)


def curve(flops: float) -> float:
    """With bits that no compute removes: bent in logarithms."""
    return float(0.5 + 40 * flops**-0.12)


def ladder(
    law: Law,
    flops: Sequence[float],
    *,
    gain: float = 1.0,
    seeds: int = 3,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[Rung]:
    """Rungs of a recipe for which the law's FLOPs are `gain` times its own."""
    rng = rng or np.random.default_rng(0)
    return [
        Rung(
            depth,
            each,
            tuple(law(gain * each) * math.exp(noise * rng.normal()) for _ in range(seeds)),
            (each / 1e10,) * seeds,
        )
        for depth, each in enumerate(flops, 1)
    ]


FLOPS = (1e12, 6e12, 4e13)
INNER = (2e12, 8e12, 2e13)


def test_a_known_multiplier_is_found_at_every_rung() -> None:
    found = multipliers(fit(ladder(line, FLOPS)), ladder(line, INNER, gain=1.5))
    assert [one.depth for one in found] == [1, 2, 3, None]
    for one in found:
        assert one.value == pytest.approx(1.5, rel=1e-6)
        assert (one.low, one.high) == pytest.approx((1.5, 1.5), rel=1e-6)
        assert one.verdict == "less"
        assert one.time == pytest.approx(1.5, rel=1e-6), "equal FLOPs a second"
    (worse, *_) = multipliers(fit(ladder(line, FLOPS)), ladder(line, INNER, gain=0.7))
    assert worse.value == pytest.approx(0.7, rel=1e-6)
    assert worse.verdict == "more"


def test_a_parabola_follows_a_curve_and_a_line_says_what_it_misses() -> None:
    straight, bent = (fit(ladder(curve, FLOPS), degree) for degree in (1, 2))
    assert bent.misfit == pytest.approx(0, abs=1e-9)
    assert straight.misfit > 0.03
    for one in multipliers(bent, ladder(curve, INNER, gain=1.3)):
        assert one.value == pytest.approx(1.3, rel=0.02)
    # the same recipe, without any noise: what the line misses is not taken for a difference
    for one in multipliers(straight, ladder(curve, FLOPS)):
        assert one.verdict in ("unclear", "above", "below")


def test_what_lies_beyond_the_rungs_is_refused() -> None:
    base = fit(ladder(line, FLOPS))
    first, second, last, every = multipliers(base, ladder(line, FLOPS, gain=3))
    assert (last.verdict, last.value, last.low) == ("below", None, None)
    assert first.value == second.value == pytest.approx(3) == every.value
    (_, _, near, _) = multipliers(base, ladder(line, FLOPS, gain=1.05))
    assert near.verdict == "less", "within a tenth of the outermost rung"
    for gain, side in ((1e4, "below"), (1e-4, "above")):
        beyond = multipliers(base, ladder(line, FLOPS, gain=gain))
        assert {one.verdict for one in beyond} == {side}
    both = [*ladder(line, FLOPS[:1], gain=1e-4), *ladder(line, FLOPS[1:], gain=1e4)]
    assert multipliers(base, both)[-1].verdict == "beyond"


@pytest.mark.parametrize(("one", "other"), [(1, 3), (3, 1), (1, 1)])
def test_one_seed_has_a_value_and_no_interval(one: int, other: int) -> None:
    base = fit(ladder(line, FLOPS, seeds=one, noise=1e-4))
    for found in multipliers(base, ladder(line, INNER, gain=2, seeds=other)):
        assert found.value is not None
        assert (found.verdict, found.low, found.high) == ("unknown", None, None)


def test_a_frontier_needs_two_depths_that_fall() -> None:
    with pytest.raises(ValueError, match="two depths"):
        fit(ladder(line, FLOPS[:1]))
    with pytest.raises(ValueError, match="do not fall"):
        fit(ladder(lambda flops: flops**0.01, FLOPS))


def test_a_slope_that_may_be_none_has_no_interval() -> None:
    rng = np.random.default_rng(3)
    base = fit(ladder(lambda c: 2 * c**-0.003, FLOPS, noise=0.02, rng=rng))
    found = multipliers(base, ladder(lambda c: 2 * c**-0.003, INNER, noise=0.02, rng=rng))
    assert {one.verdict for one in found} <= {"unknown", "above", "below", "beyond"}


def test_many_comparisons_widen_every_interval() -> None:
    rng = np.random.default_rng(1)
    base = fit(ladder(line, FLOPS, noise=0.002, rng=rng))
    other = ladder(line, INNER, noise=0.002, rng=rng)
    few, many = (multipliers(base, other, n)[1] for n in (1, 12))
    assert many.low < few.low < few.value == many.value < few.high < many.high  # type: ignore[operator]
    assert multipliers(base, other)[1] == multipliers(base, other, 4)[1], "three rungs, and all"


def by_hand(base: Sequence[Rung], other: Rung, rungs: Sequence[Rung], level: float) -> list[float]:
    """Value and interval for a line, with np.polyfit and by trying all FLOPs on a grid."""
    x = np.log([r.flops for r in base for _ in r.bits])
    y = np.log([b for r in base for b in r.bits])
    slope, height = np.polyfit(x, y, 1)
    pooled = [np.concatenate([np.log(r.bits) - np.log(r.bits).mean() for r in each])
              for each in (base, rungs)]  # fmt: skip
    df = [sum(len(r.bits) - 1 for r in each) for each in (base, rungs)]
    variance = [float(d @ d) / n for d, n in zip(pooled, df, strict=True)]
    mean = float(np.log(other.bits).mean())
    at = (mean - height) / slope

    def se2(where: np.ndarray | float) -> tuple[np.ndarray | float, float]:
        inside = 1 / len(x) + (where - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        return variance[0] * inside, variance[1] / len(other.bits)

    theirs, own = se2(at)
    welch = (theirs + own) ** 2 / (theirs**2 / df[0] + own**2 / df[1])
    t = student_t(level, float(welch))
    grid = np.linspace(at - 8, at + 8, 1_600_001)
    inside = grid[np.abs(mean - height - slope * grid) <= t * np.sqrt(sum(se2(grid)))]
    misfit = max(
        abs(np.log(r.bits).mean() - height - slope * np.log(r.flops)) / -slope for r in base
    )
    ends = (at, inside[0] - misfit, inside[-1] + misfit)
    return [float(np.exp(end - np.log(other.flops))) for end in ends]


@pytest.mark.parametrize("seed", range(6))
def test_an_independent_computation_agrees(seed: int) -> None:
    """`polyfit`, and Fieller's interval by search: equal to second order in the noise."""
    rng = np.random.default_rng(seed)
    base = ladder(line, FLOPS, noise=0.002, rng=rng)
    others = ladder(line, INNER, gain=1.2, noise=0.003, rng=rng)
    found = multipliers(fit(base), others, 4)
    for one, other in zip(found, others, strict=False):
        if one.value is None:
            continue
        value, low, high = by_hand(base, other, others, 1 - 0.05 / 4)
        assert one.value == pytest.approx(value, rel=1e-6)
        assert math.log(one.low or 0) == pytest.approx(math.log(low), abs=0.012)
        assert math.log(one.high or 0) == pytest.approx(math.log(high), abs=0.012)


@pytest.mark.parametrize("seed", range(4))
def test_an_interval_is_no_narrower_than_fiellers_where_the_slope_is_uncertain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = ladder(line, FLOPS, noise=0.02, rng=rng)
    middle = ladder(line, (6e12,), noise=0.02, rng=rng)
    (found,) = multipliers(fit(base), middle, 1)
    _, low, high = by_hand(base, middle[0], middle, 0.95)
    assert math.log(high / low) > 0.6, "the slope is uncertain"
    wider = math.log((found.high or 0) / (found.low or 1)) / math.log(high / low)
    assert 0.99 <= wider <= 1.15


@pytest.mark.parametrize(
    ("law", "degree", "seeds"), [(line, 1, 3), (line, 1, 2), (curve, 1, 3), (curve, 2, 3)]
)
def test_intervals_hold_in_95_of_100_cases(law: Law, degree: int, seeds: int) -> None:
    """All of a comparison's together, where seeds are noise; also where the curve is no line."""
    rng, truth, trials = np.random.default_rng(7), 1.15, 400
    held = concluded = 0
    for _ in range(trials):
        base = fit(ladder(law, FLOPS, seeds=seeds, noise=0.002, rng=rng), degree)
        rungs = ladder(law, INNER, gain=truth, seeds=seeds, noise=0.002, rng=rng)
        found = [one for one in multipliers(base, rungs) if one.low is not None]
        held += all(_holds(one, truth) for one in found)
        concluded += any(one.verdict == "less" for one in found)
    assert held / trials >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / trials)
    print(f"{law.__name__}, degree {degree}, {seeds} seeds: {held} and {concluded} of {trials}")


def _holds(one: Multiplier, truth: float) -> bool:
    return (one.low or 0) <= truth <= (one.high or 0)


def test_equal_recipes_are_seldom_found_different() -> None:
    rng, trials, wrong = np.random.default_rng(11), 300, 0
    for _ in range(trials):
        base = fit(ladder(curve, FLOPS, noise=0.003, rng=rng))
        found = multipliers(base, ladder(curve, FLOPS, noise=0.003, rng=rng))
        wrong += any(one.verdict in ("less", "more") for one in found)
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_students_t_is_that_of_the_tables() -> None:
    table = {(0.95, 1): 12.7062, (0.95, 2): 4.30265, (0.95, 4.0): 2.77645, (0.99, 10): 3.16927,
             (0.99, 60): 2.66028, (0.95, 1_000): 1.96234}  # fmt: skip
    for (level, freedom), t in table.items():
        assert student_t(level, freedom) == pytest.approx(t, rel=1e-5)
    scipy = pytest.importorskip("scipy.special")
    for freedom in (1.0, 1.7, 3.3, 8.25, 150.0, 9_000.0):
        for level in (0.8, 0.95, 0.9875, 0.999):
            exact = scipy.stdtrit(freedom, (1 + level) / 2)
            assert student_t(level, freedom) == pytest.approx(exact, rel=1e-5)


def test_the_noise_is_pooled_over_depths() -> None:
    rungs = [Rung(1, 1e12, (1.0, 1.1), (1, 1)), Rung(2, 1e13, (0.8, 0.9, 0.7), (1, 1, 1))]
    variance, freedom = frontier.spread(rungs)
    logs = [np.log(r.bits) for r in rungs]
    assert freedom == 3
    assert variance == pytest.approx(sum(((x - x.mean()) ** 2).sum() for x in logs) / 3)
