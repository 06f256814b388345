"""Schedules against values worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxchat.config.derive import derive_horizon, derive_model, derive_stage_optim
from jaxchat.config.schema import OptimConfig
from jaxchat.optim import schedule


def values(of: schedule.Schedule, *steps: int) -> list[float]:
    of = jax.jit(of)
    return [float(of(jnp.asarray(step, jnp.int32))) for step in steps]


def test_the_classic_rate_is_flat_then_falls_to_zero() -> None:
    rate = schedule.rate_multiplier(OptimConfig(), 1000)
    got = values(rate, 0, 799, 800, 900, 999, 1000)
    assert got == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.005, 0.0])


def test_the_modern_rate_warms_up_and_ends_at_a_twentieth() -> None:
    config = OptimConfig(warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05)
    rate = schedule.rate_multiplier(config, 1000)
    # warmdown over 650 steps from 350: half-way at 675
    got = values(rate, 0, 19, 39, 40, 350, 675, 1000)
    assert got == pytest.approx([1 / 40, 0.5, 1.0, 1.0, 1.0, 0.525, 0.05])


def test_no_warmdown_is_no_warmdown() -> None:
    rate = schedule.rate_multiplier(OptimConfig(warmdown_ratio=0.0), 10)
    assert values(rate, 0, 5, 9) == [1.0, 1.0, 1.0]


def test_momentum_warms_up_and_stays() -> None:
    momentum = schedule.momentum(OptimConfig(), 1000)
    got = values(momentum, 0, 150, 300, 600, 1000)
    assert got == pytest.approx([0.85, 0.90, 0.95, 0.95, 0.95])


def test_modern_momentum_falls_again_during_the_warmdown() -> None:
    config = OptimConfig(
        momentum=0.97, momentum_end=0.90, momentum_warmup_steps=400, warmdown_ratio=0.5
    )
    got = values(schedule.momentum(config, 2000), 0, 200, 400, 1000, 1500, 2000)
    assert got == pytest.approx([0.85, 0.91, 0.97, 0.97, 0.935, 0.90])


def test_a_run_shorter_than_the_momentum_warmup_only_warms_up() -> None:
    config = OptimConfig(
        momentum=0.97, momentum_end=0.90, momentum_warmup_steps=400, warmdown_ratio=0.65
    )
    assert values(schedule.momentum(config, 100), 0, 50, 99) == pytest.approx([0.85, 0.865, 0.8797])


def test_the_cosine_decay_goes_from_all_to_nothing() -> None:
    decay = schedule.decay(OptimConfig(weight_decay=0.2, decay_schedule="cosine"), 100)
    assert values(decay, 0, 25, 50, 100) == pytest.approx([0.2, 0.170710678, 0.1, 0.0], abs=1e-7)


def test_the_constant_decay_is_constant() -> None:
    decay = schedule.decay(OptimConfig(weight_decay=0.2), 100)
    assert values(decay, 0, 50, 100) == pytest.approx([0.2, 0.2, 0.2])


def test_a_warmup_may_be_a_share_of_the_steps() -> None:
    config = OptimConfig(warmup_ratio=0.05, warmdown_ratio=0.5)
    rate = schedule.rate_multiplier(config, 200)
    assert values(rate, 0, 4, 9, 10, 100, 150) == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.5])
    few = schedule.rate_multiplier(config, 9)  # round(0.45) is none
    assert values(few, 0, 1) == [1.0, 1.0]


def test_every_step_of_septembers_sft() -> None:
    """As chat_train has it, whose warmdown begins at a whole step: here for an even number."""
    base = derive_horizon(derive_model(4, "september", 300), "september", 12.0)
    stage = derive_stage_optim("sft", "september", base.optim, base.rate_scale)
    optim, steps = stage.within(base.optim), 640

    def share(step: int) -> float:
        if step < 32:
            return (step + 1) / 32
        return 1.0 if step < 320 else 1 - (step - 320) / 320

    def momentum(step: int) -> float:
        part = min(step / 300, 1)
        return (1 - part) * 0.85 + part * 0.95

    every = range(steps)
    got = values(schedule.rate_multiplier(optim, steps), *every)
    assert got == pytest.approx([share(step) for step in every])
    got = values(schedule.momentum(optim, steps), *every)
    assert got == pytest.approx([momentum(step) for step in every])
    rates = (stage.matrix_lr, stage.embedding_lr, stage.unembedding_lr, stage.scalar_lr)
    assert rates == pytest.approx((0.02, 0.3, 0.008, 0.5))
    assert (stage.weight_decay, stage.grad_clip, stage.warm_start) == (0, 0, False)
