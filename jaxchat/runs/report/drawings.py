"""The plots of reports: one run's, or those of two over each other (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxchat.config.schema import MODELS
from jaxchat.progress import duration
from jaxchat.runs.report import elements, plots
from jaxchat.runs.report.curves import Curve
from jaxchat.runs.report.metrics import chance, told
from jaxchat.runs.report.plots import Bar, Mark, Series
from jaxchat.runs.report.text import dollars
from jaxchat.runs.stages import BY_NAME

BRIEF = {"sft": "Fine-tuning", "rl": "RL"}
# of reinforcement learning: where one of these falls or rises to an end, it has collapsed
COLLAPSE = {
    "entropy": "Entropy, in nats a sampled token",
    "length": "Tokens of an answer",
    "no_signal": "Share of problems without signal",
}
SMOOTHED = 60  # points from which a line is drawn as its mean, and the points faintly behind it


class Drawn(NamedTuple):
    """A curve, whose it is, and the class that colours it."""

    name: str
    style: str
    curve: Curve


def stage_figures(key: str, title: str, curves: Sequence[Drawn]) -> list[str]:
    """All plots of one training stage; `key` is unique in the page."""
    if any("reward" in drawn.curve for drawn in curves):
        return [
            _over(key, title, "Reward", "reward", curves, "steps", zero=True),
            _over(key, title, "Reward", "reward", curves, "time", zero=True),
            *(
                _over(key, title, f"Held-out {name}", name, curves, "steps", zero=True)
                for name in _passes(curves)
            ),
            *(
                _over(key, title, caption, name, curves, "steps", zero=True)
                for name, caption in COLLAPSE.items()
            ),
            _rates(key, title, curves),
        ]
    return [
        _over(key, title, "Loss", "loss", curves, "tokens", steep=True),
        _over(key, title, "Loss", "loss", curves, "time", steep=True),
        _over(key, title, "Bits per byte", "bits_per_byte", curves, "tokens"),
        _over(key, title, "Bits per byte", "bits_per_byte", curves, "time"),
        _over(key, title, "CORE meanwhile", "core", curves, "tokens"),
        _over(key, title, "Tokens a second", "tokens_per_second", curves, "tokens", zero=True),
        _rates(key, title, curves),
    ]


def _passes(curves: Sequence[Drawn]) -> list[str]:
    """pass@1 and the pass@k of the largest k that was evaluated."""
    there = {name for d in curves for name in d.curve.get("passed", {}) if "@" in name}
    ordered = sorted(there, key=lambda name: int(name.partition("@")[2]))
    return list(dict.fromkeys([*ordered[:1], *ordered[-1:]]))


def _over(
    key: str,
    title: str,
    caption: str,
    name: str,
    curves: Sequence[Drawn],
    over: str,
    *,
    steep: bool = False,
    zero: bool = False,
) -> str:
    """One quantity over tokens, steps or time."""
    part = {"bits_per_byte": "evaluated", "tokens_per_second": "speed", "core": "probed"}.get(name)
    part = "passed" if "@" in name else part
    columns = [(drawn, drawn.curve.get(part, {}) if part else drawn.curve) for drawn in curves]
    found = [(d, c, xs) for d, c in columns if name in c and (xs := _xs(d.curve, c, over))]
    unit, label = 1.0, over
    if over == "time" and found:
        unit, label = _time_unit(max(max(xs) for _, _, xs in found))
    series = [
        line
        for drawn, column, xs in found
        for line in _lines(
            drawn,
            [x / unit for x in xs],
            column[name],
            dots=part in ("evaluated", "passed", "probed"),
            alone=len(found) == 1,
        )
    ]
    drawing = plots.line_plot(
        f"{key}-{elements.slug(caption)}-{over}", f"{title}: {caption.lower()} over {over}", series,
        label, from_zero=zero, steep=steep,
    )  # fmt: skip
    return elements.figure(caption, drawing, f"over {over}")


def _xs(curve: Curve, column: Mapping[str, Any], over: str) -> list[float]:
    """Where the points of a column are; none where that is not known."""
    if over == "tokens":
        tokens = curve["step_tokens"]
        return [step * tokens for step in column["step"]] if tokens else []
    return list(column.get("step" if over == "steps" else over, []))


def _time_unit(most: float) -> tuple[float, str]:
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if most >= 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


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


def moving_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """Of each value and the `width` - 1 before it, as far as there are such."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        there = [v for v in values[max(0, end - width) : end] if v is not None]
        means.append(sum(there) / len(there) if there else None)
    return means


def _rates(key: str, title: str, curves: Sequence[Drawn]) -> str:
    """The schedule; its peaks stand beneath."""
    found = [drawn for drawn in curves if "rates" in drawn.curve]
    series = [
        Series(d.name, d.curve["rates"]["step"], d.curve["rates"]["share"], d.style) for d in found
    ]
    drawing = plots.line_plot(
        f"{key}-rates", f"{title}: learning rates as a share of their peaks, over steps", series,
        "steps", show=_percent, from_zero=True,
    )  # fmt: skip
    if not drawing:
        return ""
    lines = []
    for d in found:
        rates = d.curve["rates"]["peaks"].items()
        peaks = ", ".join(f"{group} {rate:.3g}" for group, rate in rates)
        lines.append(f"{d.name + ': ' if len(found) > 1 else 'peaks: '}{peaks}")
    note = elements.paragraph("; ".join(lines), "peaks")
    return elements.figure("Learning rates", drawing + note, "share of the peak, over steps")


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def share_figure(key: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The shares of the table of metrics: a mark for each model, with its interval."""
    groups = [
        (row["name"], [_mark(model, model, value) for model, value in row["values"].items()])
        for row in rows
        if row["unit"] == "share"
    ]
    drawing = plots.mark_plot(key, "Right answers by task and model", groups, show=_percent)
    styles = [m for m in MODELS if any(m in row["values"] for row in rows)]
    note = elements.legend([(model, model) for model in styles])
    return elements.figure("Right answers", drawing and note + drawing, "with 95% intervals")


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
    drawing = plots.mark_plot(key, "Right answers of both runs", groups, show=_percent)
    return elements.figure("Right answers", drawing, "with 95% intervals")


def _mark(name: str, style: str, value: Mapping[str, Any]) -> Mark:
    low, high = value.get("interval", (value["value"], value["value"]))
    return Mark(name, style, value["value"], low, high, told(value, "share"))


def core_figure(key: str, model: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """CORE by task: accuracies with intervals, and ticks where guessing would be."""
    best_first = sorted(tasks.items(), key=lambda item: -item[1]["centered"])
    groups = [
        (
            name,
            [
                _mark("", model, {"value": t["accuracy"], "interval": (t["low"], t["high"])}),
            ],
        )
        for name, t in best_first
    ]
    drawing = plots.mark_plot(
        key, f"CORE by task of {model}", groups,
        show=_percent, chance=[chance(task) for _, task in best_first],
    )  # fmt: skip
    return elements.figure("Accuracy by task", drawing, "a tick is guessing; best centred first")


def time_figure(key: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the time went, and the money."""
    bars = []
    for name, stage in stages.items():
        cost = f", {dollars(stage['dollars'])}" if stage["dollars"] else ""
        style, spent = name if name in MODELS else "other", stage["seconds"]
        bars.append(
            Bar(BRIEF.get(name, BY_NAME[name].heading), style, spent, duration(spent) + cost)
        )
    return elements.figure("Time", plots.bar_plot(key, "Time by stage", bars), "by stage")
