"""A plan with what was compiled for a kind of device: whether each stage fits, its time and cost.

It needs JAX; `plan` itself does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxchat.config.schema import RunConfig
from jaxchat.progress import duration
from jaxchat.runs.doctor.compiled import (
    Compiled,
    all_to_json,
    compile_all,
    say,
)
from jaxchat.runs.doctor.compiled_text import overview
from jaxchat.runs.plan import plan
from jaxchat.runs.tables import table
from jaxchat.train.compiled.engine import EngineShape


@dataclass(frozen=True)
class StageTime:
    """What a training stage takes by its programs' predicted times."""

    name: str
    steps: int
    seconds_a_step: float
    mfu: float
    sampling: float  # seconds a step, of RL's rollouts, if every one takes all that it may
    dollars_per_hour: float

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.steps * (self.seconds_a_step + self.sampling)

    @property
    def dollars(self) -> float:
        """What that time costs; 0 where the price is not known."""
        return self.dollars_per_hour * self.seconds / 3600


def compile_plan(
    config: RunConfig, tier: str, kind: str, stages: Collection[str] = ()
) -> tuple[tuple[Compiled, ...], tuple[StageTime, ...]]:
    """The tier's programs on the kind, and the times of its stages.

    Raises ArtifactError where a wheel is missing, and ConfigError where a step cannot be.
    """
    found = compile_all(config, tier, kind, stages, say=say)
    return found, tuple(stage_times(config, found))


def stage_times(config: RunConfig, found: Sequence[Compiled]) -> Iterator[StageTime]:
    """Those of the training stages whose programs were compiled for a device with ceilings."""
    target = found[0].target
    known = target.name.startswith(config.hardware.name)
    price = config.hardware.dollars_per_hour if known else 0.0
    for stage in plan.make_plan(config).stages:
        step = _of(found, stage.name, "step")
        if step is not None and step.time is not None:
            sampling = _sampling(config, found) if stage.name == "rl" else 0.0
            yield StageTime(stage.name, stage.steps, step.time.seconds, step.mfu, sampling, price)


def _of(found: Sequence[Compiled], stage: str, what: str) -> Compiled | None:
    chosen = (one for one in found if stage in one.work.stages and one.work.what == what)
    return next(chosen, None)


def _sampling(config: RunConfig, found: Sequence[Compiled]) -> float:
    """Seconds of a step's rollouts: each device reads its prompts, then decodes to the end."""
    rl, devices = config.rl, config.hardware.devices
    prefill, decode = _of(found, "rl", "prefill"), _of(found, "rl", "decode")
    if prefill is None or decode is None or prefill.time is None or decode.time is None:
        return 0.0
    assert isinstance(decode.work.shape, EngineShape)
    rollouts = rl.problems_per_step * rl.samples_per_problem
    rounds = -(-rollouts // (devices * decode.work.shape.slots))
    prompts = -(-rl.problems_per_step // devices) * prefill.time.seconds
    return prompts + rounds * rl.max_new_tokens * decode.time.seconds


def render(found: Sequence[Compiled], times: Sequence[StageTime]) -> str:
    """The part of the plan's text."""
    head, *lines = overview(found)
    if not times:
        return "\n".join([f"Compiled  {head}", *lines])
    priced = times[0].dollars_per_hour > 0
    rows = [("stage", "steps", "a step", "MFU", "sampling", "time", *(["cost"] if priced else []))]
    for one in times:
        rows.append((
            one.name, f"{one.steps:,}", f"{one.seconds_a_step * 1e3:,.4g} ms", f"{one.mfu:.1%}",
            f"{one.sampling * 1e3:,.4g} ms" if one.sampling else "", duration(one.seconds),
            *([f"${one.dollars:,.2f}"] if priced else []),
        ))  # fmt: skip
    total = sum(one.seconds for one in times)
    cost = [f"${sum(one.dollars for one in times):,.2f}"] if priced else []
    rows.append(("total", "", "", "", "", duration(total), *cost))
    return "\n".join([
        f"Compiled  {head}",
        *lines,
        "",
        "Training, by what was compiled",
        *table(rows),
        "  Collectives run beside the step, samples of RL have their full length. Not in it: "
        "downloads, compiling, evaluation.",
    ])  # fmt: skip


def to_json(found: Sequence[Compiled], times: Sequence[StageTime]) -> dict[str, Any]:
    """The part of the plan's JSON."""
    stages = [{**vars(one), "seconds": one.seconds, "dollars": one.dollars} for one in times]
    return {**all_to_json(found), "training": stages}
