"""ChatCORE and pass@k."""

import itertools

import pytest

from jaxchat.evals.scores import BASELINES, centred, chatcore, chatcore_counting, pass_at


def test_guessing_is_nothing_and_knowing_is_one() -> None:
    assert chatcore(dict(BASELINES)) == pytest.approx(0.0)
    assert chatcore(dict.fromkeys(BASELINES, 1.0)) == pytest.approx(1.0)
    assert centred("mmlu", 0.3111) == pytest.approx((0.3111 - 0.25) / 0.75)


def test_nanochats_published_figures_give_its_published_score() -> None:
    """Its report of November 2025, after SFT: ChatCORE 0.0884."""
    said = {
        "arc_easy": 0.3876, "arc_challenge": 0.2807, "mmlu": 0.3151, "gsm8k": 0.0455,
        "humaneval": 0.0854,
    }  # fmt: skip
    assert f"{chatcore(said):.4f}" == "0.0884"
    assert chatcore_counting(said) is None, "counting was not measured"
    counted = said | {"counting": 0.5}
    assert chatcore(counted) == chatcore(said), "the sixth task is in the score of the five"
    assert chatcore_counting(counted) == pytest.approx((5 * 0.08842 + 0.5) / 6, abs=1e-5)
    assert chatcore({"arc_easy": 0.5}) is None


@pytest.mark.parametrize(("right", "samples"), [(0, 5), (1, 5), (3, 5), (5, 5), (2, 6)])
def test_pass_at_k_is_the_share_of_all_draws_of_k_with_a_right_one(
    right: int, samples: int
) -> None:
    passed = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        draws = list(itertools.combinations(passed, k))
        assert pass_at(k, right, samples) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples, not 2"):
        pass_at(3, 1, 2)
