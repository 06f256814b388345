"""ChatCORE: how much better than guessing a chat model is, over five tasks (nanochat's score).

nanochat's published figures (0.0884 after SFT) are the mean of these five. Its code of November
2025 has a sixth, counting letters (SpellingBee there): the mean of the six is told beside it, under
its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# accuracy of guessing; nanochat takes a quarter for ARC, too, some of whose problems have 3 or 5
BASELINES = {
    "arc_easy": 0.25,
    "arc_challenge": 0.25,
    "mmlu": 0.25,
    "gsm8k": 0.0,
    "humaneval": 0.0,
}
SIXTH = "counting"  # nobody guesses how often a letter is in a word: 0


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
