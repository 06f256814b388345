"""What the plots of a stage draw: points as logged, their mean, and the schedule."""

import re

from report_records import make_config

from jaxchat.runs.report.curves import learning_rates, make_curve
from jaxchat.runs.report.drawings import SMOOTHED, Drawn, stage_figures


def drawn(steps: int) -> Drawn:
    log = [{"step": i, "time": float(i), "loss": 1.0} for i in range(steps)]
    rates = learning_rates(make_config("optim.warmdown_ratio=1.0"), "base", steps)
    return Drawn("base", "base", make_curve(log, 10) | {"rates": rates})


def lines(figure: str) -> list[str]:
    return re.findall(r'class="line (\w+) ', figure)


def test_many_points_are_drawn_faintly_behind_their_mean() -> None:
    many, few = drawn(SMOOTHED), drawn(SMOOTHED - 1)
    assert lines(stage_figures("k", "t", [many])[0]) == ["faint", "line"]
    assert lines(stage_figures("k", "t", [few])[0]) == ["line"]
    assert lines(stage_figures("k", "t", [many, many])[0]) == ["line", "line"]


def test_the_schedule_falls_from_its_peak_to_nothing() -> None:
    figure = stage_figures("k", "t", [drawn(10)])[-1]
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", figure.split("line line")[1])]
    levels = dict(re.findall(r'y="([\d.]+)" dy=".33em" text-anchor="end">([\d.]+%)', figure))
    percent = {printed: float(y) for y, printed in levels.items()}
    assert heights[0] == percent["100%"]
    tenth = (percent["100%"] - percent["0%"]) / 10
    assert abs(heights[-1] - (percent["0%"] + tenth)) < 0.02
    assert "peaks: head 0.0098, embedding 0.49, matrix 0.02" in figure


def test_reinforcement_learning_shows_what_it_learns_and_whether_it_collapses() -> None:
    log = [
        {"step": i, "time": i, "loss": 0.0, "reward": i / 9, "entropy": 2 - i / 9, "length": 20,
         "no_signal": i / 9}
        for i in range(9)
    ]  # fmt: skip
    passes = [{"step": i, "time": i, "pass@1": 0.5, "pass@2": 0.6, "pass@8": 0.7} for i in (0, 9)]
    curve = make_curve([*log, *passes], 0)
    figures = "".join(stage_figures("rl", "RL", [Drawn("rl", "rl", curve)]))
    captions = re.findall(r"<figcaption>(.*?)<", figures)
    assert [words.strip() for words in captions] == [
        "Reward", "Reward", "Held-out pass@1", "Held-out pass@8",
        "Entropy, in nats a sampled token", "Tokens of an answer",
        "Share of problems without signal",
    ]  # fmt: skip
    old = make_curve([{"step": 0, "loss": 0.0, "reward": 0.5}], 0)
    assert "pass@" not in "".join(stage_figures("rl", "RL", [Drawn("rl", "rl", old)]))
