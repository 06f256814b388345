"""ChatCORE: how much better than guessing a chat model is, over six tasks (nanochat's score)."""

from __future__ import annotations

from collections.abc import Mapping

# accuracy of guessing; nanochat takes a quarter for ARC, too, some of whose problems have 3 or 5
BASELINES = {
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "mmlu": 0.25,
    "gsm8k": 0.0,
    "humaneval": 0.0,
    "spelling": 0.0,
}


def centred(name: str, accuracy: float) -> float:
    """The accuracy on a scale where guessing is 0 and knowing is 1."""
    baseline = BASELINES.get(name, 0.0)
    return (accuracy - baseline) / (1.0 - baseline)


def chatcore(accuracies: Mapping[str, float]) -> float | None:
    """The mean of the centred accuracies; None where one of the six is missing."""
    if not BASELINES.keys() <= accuracies.keys():
        return None
    return sum(centred(name, accuracies[name]) for name in BASELINES) / len(BASELINES)


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
