"""Rates, momentum and decay of every step of every stage, against nanochat's, written anew here.

The formulas are those of nanochat's scripts: November 2025 for tiers 100, 300 and 1000 (base_train,
mid_train, chat_sft, chat_rl), July 2026 for gpt2 (base_train, chat_sft, chat_rl), step by step in
Python's floats. None of the values comes from `jaxchat.config.derive` or `jaxchat.config.schema`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from jaxchat.config import loading
from jaxchat.config.schema import MODELS, RunConfig, StageOptimConfig
from jaxchat.errors import ConfigError
from jaxchat.optim import schedule
from jaxchat.optim.param_groups import parameter_table
from jaxchat.runs.plan import plan

PAID = ("100", "300", "1000", "gpt2")
SMEAR_RATE = 0.2  # which nothing scales but the stage's own factor


@dataclass(frozen=True)
class Reference:
    """A stage of nanochat: rates of matrices, embedding, head and scalars before the width's
    factor, which all follow `share` of (step, steps), Muon's momentum and decay."""

    rates: tuple[float, float, float, float]
    factor: float
    share: Callable[[int, int], float]
    momentum: Callable[[int, int], float]
    decay: Callable[[int, int], float]


def never(step: int, steps: int) -> float:
    return 0.0


def settled(step: int, steps: int) -> float:
    return 0.95


def settling(step: int, steps: int) -> float:
    part = min(step / 300, 1.0)
    return 0.85 + part * (0.95 - 0.85)


def falling_at_once(step: int, steps: int) -> float:
    return 1.0 - step / steps


def falling_from(start: float) -> Callable[[int, int], float]:
    def share(step: int, steps: int) -> float:
        done = step / steps
        return 1.0 if done < start else 1.0 - (done - start) / (1.0 - start)

    return share


def november_base(step: int, steps: int) -> float:
    last = round(0.2 * steps)
    return 1.0 if step <= steps - last else (steps - step) / last


def july_base(step: int, steps: int) -> float:
    last = round(0.65 * steps)
    if step < 40:
        return (step + 1) / 40
    if step <= steps - last:
        return 1.0
    left = (steps - step) / last
    return left + (1.0 - left) * 0.05


def july_base_momentum(step: int, steps: int) -> float:
    last = round(0.65 * steps)
    if step < 400:
        return 0.85 + step / 400 * (0.97 - 0.85)
    if step >= steps - last:
        part = (step - (steps - last)) / last
        return 0.97 - part * (0.97 - 0.90)
    return 0.97


def july_decay(config: RunConfig) -> Callable[[int, int], float]:
    """Of the d24: 0.28 at the d12's tokens and 2**19 tokens a batch."""
    here, there = (
        12 * width**2 * depth + 32_768 * width for depth, width in ((24, 1536), (12, 768))
    )
    gates = [len(range(1, depth, 2)) * 12 * heads for depth, heads in ((24, 12), (12, 6))]
    ratio = (there + gates[1]) / (here + gates[0])
    whole = 0.28 * math.sqrt(2**20 / 2**19) * ratio

    def decay(step: int, steps: int) -> float:
        return whole * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    return decay


def references(config: RunConfig) -> dict[str, Reference]:
    if config.name != "gpt2":
        rates = (0.02, 0.2, 0.004, 0.5)
        return {
            "base": Reference(rates, 1.0, november_base, settling, never),
            "mid": Reference(rates, 1.0, falling_from(0.8), settling, never),
            "sft": Reference(rates, 0.02, falling_at_once, settled, never),
            "rl": Reference(rates, 0.05, falling_at_once, settled, never),
        }
    rates = (0.02, 0.3, 0.008, 0.5)
    scaled = tuple(rate * math.sqrt(2) for rate in rates)  # for batches of 2**20 tokens
    return {
        "base": Reference(scaled, 1.0, july_base, july_base_momentum, july_decay(config)),  # type: ignore[arg-type]
        "mid": Reference(rates, 0.8, falling_from(0.5), settling, never),
        "sft": Reference(rates, 0.8, falling_from(0.5), settling, never),
        "rl": Reference((0.02, 0.2, 0.004, 0.5), 0.05, falling_at_once, settled, never),
    }


def stage_steps(config: RunConfig, stage: str) -> int:
    return next(one.steps for one in plan.make_plan(config).stages if one.name == stage)


@pytest.mark.parametrize("stage", MODELS)
@pytest.mark.parametrize("tier", PAID)
def test_every_step_of_a_paid_tier_is_nanochats(tier: str, stage: str) -> None:
    config = loading.load(loading.find_tier(tier))
    want, optim, steps = (
        references(config)[stage],
        config.optim_of(stage),
        stage_steps(config, stage),
    )
    at = np.arange(steps, dtype=np.int32)

    def every(of: Callable[[int, int], float]) -> np.ndarray:
        return np.array([of(step, steps) for step in range(steps)])

    def ours(of: schedule.Schedule) -> np.ndarray:
        return np.asarray(of(at))  # type: ignore[arg-type]

    momentum, decay = schedule.momentum(optim, steps), schedule.decay(optim, steps)
    np.testing.assert_allclose(ours(momentum), every(want.momentum), rtol=1e-6)
    np.testing.assert_allclose(ours(decay), every(want.decay), rtol=1e-4, atol=1e-8)

    matrix, embedding, head, scalar = want.rates
    width = (config.model.n_embd / 768) ** -0.5
    peaks = {
        "head": head * width,
        "embedding": embedding * width,
        "value_embedding": embedding * width / 2,
        "residual": scalar / 100,
        "x0": scalar,
        "smear": SMEAR_RATE,
        "matrix": matrix,
    }
    share = ours(schedule.rate_multiplier(optim, steps))
    scale = getattr(config, stage).lr_scale
    assert {group.label for group in parameter_table(config.model, optim)} == peaks.keys()
    for group in parameter_table(config.model, optim):
        rates = peaks[group.label] * want.factor * every(want.share)
        np.testing.assert_allclose(
            group.rate * scale * share, rates, rtol=1e-5, atol=1e-8, err_msg=group.label
        )


@pytest.mark.parametrize("tier", PAID)
def test_clipping_and_warm_starts_of_a_paid_tier(tier: str) -> None:
    config = loading.load(loading.find_tier(tier))
    limits = {stage: config.optim_of(stage).grad_clip for stage in MODELS}
    assert limits == {"base": 0.0 if tier == "gpt2" else 1.0, "mid": 0.0, "sft": 0.0, "rl": 0.0}
    warm = {stage for stage in MODELS if config.starts_warm(stage)}
    assert warm == ({"mid", "sft"} if tier == "gpt2" else set())


# stage, steps -> the step, the share of the highest rate there, and Muon's momentum
CPU = {
    ("base", 250): (
        (0, 1, 0.85), (100, 1, 0.95), (150, 1, 0.95), (200, 0.5, 0.95), (249, 0.01, 0.95)),
    ("mid", 1000): (
        (0, 1, 0.85), (50, 1, 0.9), (600, 1, 0.95), (800, 0.5, 0.95), (999, 0.0025, 0.95)),
    ("sft", 200): (
        (0, 1, 0.85), (50, 1, 0.9), (120, 1, 0.95), (160, 0.5, 0.95), (199, 0.0125, 0.95)),
    ("rl", 30): (
        (0, 1, 0.85), (10, 1, 0.86), (18, 1, 0.868), (24, 0.5, 0.874), (29, 1 / 12, 0.879)),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "steps"), CPU)
def test_the_cpu_tier_stays_as_it_is(stage: str, steps: int) -> None:
    config = loading.load(loading.find_tier("cpu"))
    optim = config.optim_of(stage)
    rates = {"base": 1.0, "mid": 1.0, "sft": 0.2, "rl": 0.1}
    assert (1.0 if stage == "base" else getattr(config, stage).lr_scale) == rates[stage]
    assert (optim.matrix_lr, optim.embedding_lr, optim.unembedding_lr) == (0.02, 0.2, 0.004)
    assert (optim.weight_decay, optim.grad_clip, config.starts_warm(stage)) == (0.0, 1.0, False)
    share, momentum = schedule.rate_multiplier(optim, steps), schedule.momentum(optim, steps)
    for step, *want in CPU[stage, steps]:
        got = [float(of(np.int32(step))) for of in (share, momentum)]  # type: ignore[arg-type]
        assert got == pytest.approx(want, abs=1e-6), f"{stage}, step {step}"


def test_base_leaves_later_stages_alone_but_for_its_rates() -> None:
    tier = loading.find_tier("100")
    changes = ["optim.warmdown_ratio=0.9", "optim.grad_clip=7", "optim.weight_decay=0.3"]
    config = loading.load(tier, [*changes, "optim.momentum=0.5", "optim.matrix_lr=0.04"])
    usual = loading.load(tier)
    for stage in MODELS[1:]:
        got, want = (getattr(c, f"{stage}_optim") for c in (config, usual))
        assert got.matrix_lr == 0.04  # which lr_scale multiplies
        assert {**vars(got), "matrix_lr": 0.02} == vars(want)


def test_a_stage_can_be_given_a_schedule_of_its_own() -> None:
    config = loading.load(loading.find_tier("100"), ["rl_optim.warmdown_ratio=0.5", "base.steps=9"])
    assert config.optim_of("rl").warmdown_ratio == 0.5
    assert config.optim_of("sft").warmdown_ratio == 1.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "rl_optim.warmdown_ratio=1.5",
            "rl_optim.warmdown_ratio is 1.5; it must be a number from 0 to 1",
        ),
        ("mid_optim.grad_clip=-1", "mid_optim.grad_clip is -1.0; it must be a number of 0 or more"),
        ("sft_optim.decay_schedule=sudden", "sft_optim.decay_schedule is 'sudden'"),
        ("sft_optim.normuon=true", "unknown key 'normuon'"),
        ("rl_optim.warm_start=true", "rl_optim.warm_start is true; .* starts with a fresh"),
    ],
)
def test_a_bad_schedule_is_named(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loading.load(loading.find_tier("cpu"), [override])


def test_a_run_made_before_had_the_schedules_of_base_everywhere() -> None:
    import json

    config = loading.load(loading.find_tier("cpu"), ["optim.grad_clip=3"])
    document = json.loads(loading.to_json(config))
    for stage in MODELS[1:]:
        del document[f"{stage}_optim"]
    old = loading.from_json(json.dumps(document))
    assert old.sft_optim == StageOptimConfig.like(config.optim)
    assert [vars(old.optim_of(stage)) for stage in MODELS] == [vars(config.optim)] * 4
