"""What `metrics.jsonl` and the schedules say of a training stage, as curves to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.config.schema import MODELS, RLConfig, RunConfig, TrainConfig
from jaxchat.train.metrics import read_metrics

POINTS = 300  # a curve has no more
RATE_POINTS = 60
MEANS = ("loss", "reward", "entropy", "length", "no_signal", "grad_norm")

Curve = dict[str, Any]


def read_curves(root: Path, config: RunConfig, stages: Sequence[str] = MODELS) -> dict[str, Curve]:
    """The curves of every stage of the run in `root` that has logged a step.

    A curve has columns of equal length: `step` (steps done), those of MEANS that were logged, and
    `time` (seconds of training) where it was logged; `evaluated` has the same with `bits_per_byte`,
    `probed`, where there is any, with `core`, `passed` with `pass@1`, `pass@2`, ...; `speed` tokens
    a second. `step_tokens` turns steps into tokens. More than POINTS steps are thinned: a point is
    the mean of some consecutive ones, at the last of them.
    """
    found = {}
    for name in stages:
        settings: TrainConfig | RLConfig = getattr(config, name)
        if records := [r for r in read_metrics(root / name / "metrics.jsonl") if "step" in r]:
            tokens = settings.batch_tokens if isinstance(settings, TrainConfig) else 0
            found[name] = make_curve(records, tokens)
    return found


def make_curve(records: Sequence[Mapping[str, Any]], step_tokens: int) -> Curve:
    """See `read_curves`; `step_tokens` 0: the tokens of a step differ."""
    steps = [r for r in records if "loss" in r]
    evaluated = [r for r in records if "bits_per_byte" in r]
    probed = [r for r in records if "core" in r]
    # logged with the steps done before, not with the last of them
    passed = [{**r, "step": r["step"] - 1} for r in records if "pass@1" in r]
    return {
        "steps": max((r["step"] for r in (*steps, *evaluated, *passed)), default=0) + 1,
        "step_tokens": step_tokens,
        **thinned(steps, [name for name in MEANS if any(name in r for r in steps)]),
        "evaluated": thinned(evaluated, ["bits_per_byte"]),
        **({"probed": thinned(probed, ["core"])} if probed else {}),
        "passed": thinned(passed, [name for name in passed[0] if name.startswith("pass@")])
        if passed
        else {"step": []},
        "speed": speed(steps, step_tokens),
    }


def thinned(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Curve:
    """The columns `names`, `step` and, where all have it, `time`, in at most POINTS points."""
    groups = _groups(records, POINTS)
    curve: Curve = {"step": [group[-1]["step"] + 1 for group in groups]}
    if records and all("time" in r for r in records):
        curve["time"] = [group[-1]["time"] for group in groups]
    for name in names:
        curve[name] = [_mean([r[name] for r in group if name in r]) for group in groups]
    return curve


def speed(records: Sequence[Mapping[str, Any]], step_tokens: int) -> Curve:
    """Tokens a second between some steps; the first step, which compiles, is left out."""
    timed = [r for r in records if "time" in r]
    if not step_tokens or len(timed) < 3 or len(timed) < len(records):
        return {"step": [], "tokens_per_second": []}
    before = timed[0]
    curve: Curve = {"step": [], "tokens_per_second": []}
    for group in _groups(timed[1:], RATE_POINTS):
        last = group[-1]
        seconds = last["time"] - before["time"]
        if seconds > 0:
            curve["step"].append(last["step"] + 1)
            rate = (last["step"] - before["step"]) * step_tokens / seconds
            curve["tokens_per_second"].append(_rounded(rate))
        before = last
    return curve


def _groups(records: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """At most `most` runs of consecutive records, as equal in length as can be."""
    count = min(most, len(records))
    ends = [len(records) * (i + 1) // count for i in range(count)]
    return [records[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return _rounded(sum(finite) / len(finite)) if finite else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def moving_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """Of each value and the `width` - 1 before it, as far as there are such."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        there = [v for v in values[max(0, end - width) : end] if v is not None]
        means.append(sum(there) / len(there) if there else None)
    return means


def learning_rates(config: RunConfig, stage: str, steps: int) -> dict[str, Any]:
    """The learning rates of a stage of `steps` steps.

    `peaks` has each group's highest, by name; they all follow one schedule: `share` of the peak at
    `step` (steps done before).
    """
    import numpy as np

    from jaxchat.optim import param_groups, schedule

    settings: TrainConfig | RLConfig = getattr(config, stage)
    at = np.unique(np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(np.int32))
    optim = config.optim_of(stage)
    share = np.asarray(schedule.rate_multiplier(optim, steps)(at))  # type: ignore[arg-type]
    switches = {
        "value_embedding": config.model.value_embeds,
        "residual": config.model.residual_scalars,
        "x0": config.model.residual_scalars,
        "smear": config.model.smear or config.model.backout,
    }
    peaks = {
        group.label: _rounded(group.rate * settings.lr_scale)
        for group in param_groups.parameter_table(config.model, optim)
        if switches.get(group.label, True)
    }
    return {"step": at.tolist(), "share": [_rounded(float(s)) for s in share], "peaks": peaks}
