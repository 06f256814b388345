"""What the tiers say of CORE is what bench/expected_core.py says, or was published."""

import re

import numpy as np
import pytest
from expected_core import MIDDLE, PUBLISHED, fit, left_out

from jaxchat.config import loading
from jaxchat.runs.plan.plan import make_plan

POINTS = [(run.flops, run.core) for run in PUBLISHED]


def test_the_line_is_that_of_the_normal_equations():
    x = np.array([np.log10(flops) - MIDDLE for flops, _ in POINTS])
    y = np.array([core for _, core in POINTS])
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    line = fit(POINTS)
    assert line.slope == pytest.approx(slope)
    assert line(10**MIDDLE) == pytest.approx(y.mean() - slope * x.mean())


def test_points_on_a_line_miss_nothing_and_another_shows():
    on_it = [(10.0**n, 0.1 + 0.02 * n) for n in range(4)]
    assert np.allclose(left_out(on_it), 0)
    on_it[2] = (on_it[2][0], on_it[2][1] + 0.01)
    assert left_out(on_it)[2] == pytest.approx(0.01)


@pytest.mark.parametrize("tier", ["best_100", "best_300", "best_1000"])
def test_what_a_tier_expects_is_what_the_line_says(tier):
    path = loading.find_tier(tier)
    flops = make_plan(loading.load(path)).stages[0].flops
    least = re.match(r"CORE (0\.\d+)", loading.about(path).expected)
    assert least is not None
    assert float(least[1]) == round(fit(POINTS)(flops), 2)
    assert "extrapolated" in loading.about(path).evidence
    assert flops > max(point[0] for point in POINTS)


def test_the_tier_of_a_published_run_has_its_settings_and_its_figure():
    config, published = loading.load(loading.find_tier("best_40")), PUBLISHED[0]
    assert (config.depth, config.data_ratio, config.model.vocab_size) == (
        published.depth, published.ratio, published.vocab_size,
    )  # fmt: skip
    assert loading.about(loading.find_tier("best_40")).expected == f"CORE {published.core:.3f}"
