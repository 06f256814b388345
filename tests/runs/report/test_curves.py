"""Curves: what was logged, thinned without moving it, and the schedule that was trained with."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_records import log_steps, make_config

from jaxchat.runs.report.curves import POINTS, learning_rates, make_curve, moving_mean, read_curves


def records(steps: int) -> list[dict[str, float]]:
    return [{"step": i, "time": 2.0 + i / 10, "loss": float(i)} for i in range(steps)]


def test_few_steps_are_kept_as_they_are(tmp_path: Path) -> None:
    log_steps(tmp_path / "base", 8)
    curve = read_curves(tmp_path, make_config())["base"]
    assert curve["step"] == list(range(1, 9))
    assert curve["loss"] == [6 - step / 4 for step in range(8)]
    assert curve["time"] == [0.5 * (step + 1) for step in range(8)]
    assert curve["step_tokens"] == 2_048
    assert curve["evaluated"] == {
        "step": [4, 8], "time": [2.0, 4.0], "bits_per_byte": [2.625, 2.125],
    }  # fmt: skip
    assert curve["speed"]["tokens_per_second"] == [4_096.0] * 7  # a step takes half a second


def test_many_steps_are_means_at_their_last_step() -> None:
    curve = make_curve(records(3 * POINTS), 1_000)
    assert len(curve["step"]) == len(curve["loss"]) == len(curve["time"]) == POINTS
    assert curve["step"][:2] == [3, 6]
    assert curve["loss"][:2] == [1.0, 4.0]  # of 0 1 2, and 3 4 5
    assert curve["step"][-1] == curve["steps"] == 3 * POINTS
    assert curve["time"][0] == 2.2


def test_speed_leaves_the_first_step_out_which_compiles() -> None:
    slow = [{"step": 0, "time": 60.0, "loss": 1.0}]
    slow += [{"step": i, "time": 60.0 + i, "loss": 1.0} for i in range(1, 5)]
    speed = make_curve(slow, 100)["speed"]
    assert speed == {"step": [2, 3, 4, 5], "tokens_per_second": [100.0] * 4}


def test_a_log_of_which_a_part_has_no_times_has_none() -> None:
    log = records(4)
    del log[0]["time"]
    curve = make_curve(log, 1_000)
    assert "time" not in curve
    assert curve["speed"]["step"] == []


def test_rewards_have_steps_and_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "rl" / "metrics.jsonl"
    path.parent.mkdir()
    lines = [{"step": i, "reward": i / 4, "loss": 0.0, "weight": 10.0} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curves(tmp_path, make_config())["rl"]
    assert curve["reward"] == [0.0, 0.25, 0.5]
    assert curve["step_tokens"] == 0
    assert curve["speed"]["step"] == []


def test_pass_rates_are_those_of_the_steps_done_before() -> None:
    log: list[dict[str, float]] = []
    for step in range(3):
        log.append({"step": step, "pass@1": step / 4, "pass@4": step / 2})
        log.append({"step": step, "reward": 0.5, "loss": 0.0, "entropy": 1.0, "length": 9.0})
    log.append({"step": 3, "pass@1": 0.75, "pass@4": 1.0})
    curve = make_curve(log, 0)
    assert curve["steps"] == 3
    assert curve["step"] == [1, 2, 3]
    assert curve["passed"] == {
        "step": [0, 1, 2, 3], "pass@1": [0, 0.25, 0.5, 0.75], "pass@4": [0, 0.5, 1, 1],
    }  # fmt: skip
    assert curve["entropy"] == [1.0] * 3
    assert make_curve(log[:1], 0)["steps"] == 0, "nothing was trained yet"


def test_numbers_that_are_not_finite_are_gaps() -> None:
    log = [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 2.0}]
    assert make_curve(log, 1)["loss"] == [None, 2.0]


def test_nothing_logged_is_no_curve(tmp_path: Path) -> None:
    assert read_curves(tmp_path, make_config()) == {}


def test_learning_rates_are_those_of_the_schedule_and_the_table() -> None:
    config = make_config("sft_optim.warmdown_ratio=0.5", "sft.lr_scale=0.2")
    rates = learning_rates(config, "sft", 100)
    share = dict(zip(rates["step"], rates["share"], strict=True))
    assert share[0] == share[50] == 1.0
    assert share[75] == pytest.approx(0.5)
    assert share[99] == pytest.approx(0.02)
    width = (128 / 768) ** -0.5
    assert rates["peaks"] == pytest.approx(
        {"head": 0.004 * 0.2 * width, "embedding": 0.2 * 0.2 * width, "matrix": 0.02 * 0.2},
        rel=1e-5,
    )
    assert len(learning_rates(config, "base", 100_000)["step"]) == POINTS


def test_a_moving_mean_is_of_what_came_before() -> None:
    assert moving_mean([4.0, 2.0, None, 6.0], 2) == [4.0, 3.0, 2.0, 6.0]
    assert moving_mean([None, 1.0], 1) == [None, 1.0]
    values = np.random.default_rng(0).normal(size=50).tolist()
    assert moving_mean(values, 10)[-1] == pytest.approx(float(np.mean(values[-10:])))
