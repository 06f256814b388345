"""Scores: accuracy with its interval, pass@k, and ChatCORE, the mean over five tasks.

ChatCORE is nanochat's: how much better than guessing a chat model is. nanochat's published figures
(0.0884 after SFT) are the mean of these five. Its code of November 2025 has a sixth, counting
letters (SpellingBee there): the mean of the six is reported beside it, under its own name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PASS_AT = (1, 2, 4, 8, 16, 32, 64)
# accuracy of guessing; nanochat takes a quarter for ARC, too, some of whose problems have 3 or 5
BASELINES = {
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "mmlu": 0.25,
    "gsm8k": 0.0,
    "humaneval": 0.0,
}
SIXTH = "counting"  # the count of a letter in a word cannot be guessed: 0


@dataclass(frozen=True)
class Score:
    """A share of right answers with its 95% interval (Wilson, 1927)."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """Right answers over all."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy."""
        z, n, p = 1.96, self.total, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # The formula gives a bound of 0 or 1 only up to rounding.
        low = 0.0 if self.right == 0 else middle - half
        high = 1.0 if self.right == n else middle + half
        return low, high

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        interval = list(self.interval)
        return {**asdict(self), "accuracy": self.accuracy, "interval": interval}


def centred(name: str, accuracy: float) -> float:
    """The accuracy on a scale where guessing is 0 and knowing is 1."""
    baseline = BASELINES.get(name, 0.0)
    return (accuracy - baseline) / (1.0 - baseline)


def chatcore(accuracies: Mapping[str, float]) -> float | None:
    """The mean of the centred accuracies of the five; None where one of them is missing."""
    return _mean(BASELINES, accuracies)


def chatcore_counting(accuracies: Mapping[str, float]) -> float | None:
    """The mean with counting as the sixth; None where one of the six is missing."""
    return _mean((*BASELINES, SIXTH), accuracies)


def _mean(names: Iterable[str], accuracies: Mapping[str, float]) -> float | None:
    names = list(names)
    if not accuracies.keys() >= set(names):
        return None
    return sum(centred(name, accuracies[name]) for name in names) / len(names)


def pass_at(k: int, right: int, samples: int) -> float:
    """The chance that one of k samples is right, where `right` of `samples` were.

    The unbiased estimate of Chen et al., 2021 (arXiv 2107.03374). Raises ValueError for k beyond
    the samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {samples}.")
    miss = 1.0
    for taken in range(k):
        miss *= max(samples - right - taken, 0) / (samples - taken)
    return 1.0 - miss


def mean_reward(right: Sequence[int], samples: int) -> Score:
    """The share of samples that are right, of `sampled_right`: RL's objective."""
    return Score(sum(right), len(right) * samples)


def pass_rates(right: Sequence[int], samples: int) -> dict[int, float]:
    """k -> the chance that one of k samples is right (`sampled_right`), for powers of two."""
    ks = [k for k in PASS_AT if k <= samples]
    return {k: sum(pass_at(k, r, samples) for r in right) / len(right) for k in ks}
