"""The plots of reports: one run's, or those of two over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxchat.config.schema import MODELS
from jaxchat.progress import duration
from jaxchat.runs.report import document, plots
from jaxchat.runs.report.curves import Curve, moving_mean
from jaxchat.runs.report.metrics import chance
from jaxchat.runs.report.plots import Bar, Mark, Series
from jaxchat.runs.stages import BY_NAME
from jaxchat.runs.tables import dollars, metric, percent

BRIEF = {"sft": "Fine-tuning", "rl": "RL"}
# of reinforcement learning: where one of these falls or rises to an end, it has collapsed
COLLAPSE = {
    "entropy": "Entropy, in nats a sampled token",
    "length": "Tokens of an answer",
    "no_signal": "Share of problems without signal",
}
TRAINING = (  # caption, quantity, over what, of stages that predict tokens
    ("Loss", "loss", "tokens"),
    ("Loss", "loss", "time"),
    ("Bits per byte", "bits_per_byte", "tokens"),
    ("Bits per byte", "bits_per_byte", "time"),
    ("CORE meanwhile", "core", "tokens"),
    ("Tokens a second", "tokens_per_second", "tokens"),
)
NOT_FROM_ZERO = ("loss", "bits_per_byte", "core")
SMOOTHED = 60  # points from which a line is drawn as its mean, and the points faintly behind it


class Drawn(NamedTuple):
    """A curve, whose it is, and the class that colours it."""

    name: str
    style: str
    curve: Curve


def stage_figures(key: str, title: str, curves: Sequence[Drawn]) -> list[str]:
    """All plots of one training stage; `key` is unique in the page."""
    wanted: tuple[tuple[str, str, str], ...] = TRAINING
    if any("reward" in drawn.curve for drawn in curves):
        there = {name for d in curves for name in d.curve.get("passed", {}) if "@" in name}
        ordered = sorted(there, key=lambda name: int(name.partition("@")[2]))
        wanted = (
            *(("Reward", "reward", over) for over in ("steps", "time")),
            # pass@1, and the pass@k of the largest k that was evaluated
            *((f"Held-out {n}", n, "steps") for n in dict.fromkeys([*ordered[:1], *ordered[-1:]])),
            *((caption, name, "steps") for name, caption in COLLAPSE.items()),
        )
    figures = [_over(key, title, *each, curves) for each in wanted]
    return [*figures, _rates(key, title, curves)]


def _over(
    key: str,
    title: str,
    caption: str,
    name: str,
    over: str,
    curves: Sequence[Drawn],
) -> str:
    """One quantity over tokens, steps or time; a loss falls steeply, and most begin at zero."""
    part = {"bits_per_byte": "evaluated", "tokens_per_second": "speed", "core": "probed"}.get(name)
    part = "passed" if "@" in name else part
    columns = [(drawn, drawn.curve.get(part, {}) if part else drawn.curve) for drawn in curves]
    found = [(d, c, xs) for d, c in columns if name in c and (xs := _xs(d.curve, c, over))]
    unit, label = 1.0, "seconds" if over == "time" else over
    if over == "time" and found:
        most = max(max(xs) for _, _, xs in found)
        units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, label))
        unit, label = next(each for each in units if most >= 2 * each[0] or each[0] == 1)
    dots, alone = part in ("evaluated", "passed", "probed"), len(found) == 1
    series = [
        line
        for drawn, column, xs in found
        for line in _lines(drawn, [x / unit for x in xs], column[name], dots=dots, alone=alone)
    ]
    drawing = plots.line_plot(
        f"{key}-{document.slug(caption)}-{over}", f"{title}: {caption.lower()} over {over}", series,
        label, from_zero=name not in NOT_FROM_ZERO, steep=name == "loss",
    )  # fmt: skip
    return document.figure(caption, drawing, f"over {over}")


def _xs(curve: Curve, column: Mapping[str, Any], over: str) -> list[float]:
    """Where the points of a column are; none where that is not known."""
    if over == "tokens":
        tokens = curve["step_tokens"]
        return [step * tokens for step in column["step"]] if tokens else []
    return list(column.get("step" if over == "steps" else over, []))


def _lines(
    drawn: Drawn, xs: Sequence[float], ys: Sequence[Any], *, dots: bool, alone: bool
) -> list[Series]:
    """A line, or the mean of many points; if it is alone, the points themselves behind it."""
    name, style = drawn.name, drawn.style
    if dots:
        return [Series(name, xs, ys, style, "dots")]
    if len(xs) < SMOOTHED:
        return [Series(name, xs, ys, style)]
    mean = Series(f"{name}, mean", xs, moving_mean(ys, len(ys) // 30), style)
    return [Series(name, xs, ys, style, "faint"), mean] if alone else [mean]


def _rates(key: str, title: str, curves: Sequence[Drawn]) -> str:
    """The schedule; its peaks stand beneath."""
    found = [drawn for drawn in curves if "rates" in drawn.curve]
    series = [
        Series(d.name, d.curve["rates"]["step"], d.curve["rates"]["share"], d.style) for d in found
    ]
    drawing = plots.line_plot(
        f"{key}-rates", f"{title}: learning rates as a share of their peaks, over steps", series,
        "steps", show=percent, from_zero=True,
    )  # fmt: skip
    if not drawing:
        return ""
    lines = []
    for d in found:
        rates = d.curve["rates"]["peaks"].items()
        peaks = ", ".join(f"{group} {rate:.3g}" for group, rate in rates)
        lines.append(f"{d.name + ': ' if len(found) > 1 else 'peaks: '}{peaks}")
    note = document.note("; ".join(lines), style="peaks").html
    return document.figure("Learning rates", drawing + note, "share of the peak, over steps")


def share_figure(key: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The shares of the table of metrics: a mark for each model, with its interval."""
    groups = [
        (row["name"], [_mark(model, model, value) for model, value in row["values"].items()])
        for row in rows
        if row["unit"] == "share"
    ]
    drawing = plots.mark_plot(key, "Right answers by task and model", groups, show=percent)
    styles = [m for m in MODELS if any(m in row["values"] for row in rows)]
    note = document.legend([(model, model) for model in styles])
    return document.figure("Right answers", drawing and note + drawing, "with 95% intervals")


def versus_figure(key: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The shares of two runs, model by model: what `compare` has of the metrics."""
    groups = [
        (
            f"{row['name']}, {model}",
            [_mark(n, style, pair[style]) for n, style in zip(names, ("a", "b"), strict=True)],
        )
        for row in rows
        if row["unit"] == "share"
        for model, pair in row["models"].items()
    ]
    drawing = plots.mark_plot(key, "Right answers of both runs", groups, show=percent)
    return document.figure("Right answers", drawing, "with 95% intervals")


def _mark(name: str, style: str, value: Mapping[str, Any]) -> Mark:
    low, high = value.get("interval", (value["value"], value["value"]))
    return Mark(name, style, value["value"], low, high, metric(value, "share"))


def core_figure(key: str, model: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """CORE by task: accuracies with intervals, and ticks where guessing would be."""
    best_first = sorted(tasks.items(), key=lambda item: -item[1]["centered"])
    values = {n: {"value": t["accuracy"], "interval": (t["low"], t["high"])} for n, t in best_first}
    groups = [(name, [_mark("", model, value)]) for name, value in values.items()]
    drawing = plots.mark_plot(
        key, f"CORE by task of {model}", groups,
        show=percent, chance=[chance(task) for _, task in best_first],
    )  # fmt: skip
    return document.figure("Accuracy by task", drawing, "a tick is guessing; best centred first")


def time_figure(key: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the time went, and the money."""
    bars = []
    for name, stage in stages.items():
        cost = f", {dollars(stage['dollars'])}" if stage["dollars"] else ""
        style, spent = name if name in MODELS else "other", stage["seconds"]
        bars.append(
            Bar(BRIEF.get(name, BY_NAME[name].heading), style, spent, duration(spent) + cost)
        )
    return document.figure("Time", plots.bar_plot(key, "Time by stage", bars), "by stage")
