"""Scores and their intervals."""

from __future__ import annotations

import pytest

from jaxchat.evals.scores import Score


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Wilson's intervals at z = 1.96, worked out apart
        (0, 200, 0.0, 0.01885),
        (200, 200, 0.98115, 1.0),
        (100, 200, 0.43137, 0.56863),
        (8, 10, 0.49016, 0.94332),
    ],
)
def test_wilson_intervals(right: int, total: int, low: float, high: float) -> None:
    score = Score(right, total)
    assert score.accuracy == right / total
    assert score.interval == pytest.approx((low, high), abs=2e-5)
