"""What `--plan` prints, against figures worked out by hand."""

import math
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.runs.plan.plan import make_plan, render
from jaxchat.runs.tables import count, size

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def plan_of(name, *overrides):
    return make_plan(loading.load(CONFIGS / f"{name}.toml", overrides))


def test_tier_100_is_the_published_run():
    plan = plan_of("tier_100")
    base = plan.stages[0]
    assert plan.params["total"] == 560_988_160
    assert (base.steps, base.step_tokens, base.tokens) == (21_400, 524_288, 11_219_763_200)
    assert base.flops == 3_491_758_080 * 11_219_763_200
    # 3.918e19 FLOPs on 8 devices of 989e12 at 45%
    assert base.seconds == pytest.approx(3.9177e19 / (8 * 989e12 * 0.45), rel=1e-4)
    assert base.dollars == pytest.approx(24 * base.seconds / 3600)
    assert 3 * 3600 < plan.seconds < 4 * 3600
    assert 70 < plan.dollars < 100


def test_memory_of_tier_100_is_what_its_parts_are():
    held = plan_of("tier_100").memory
    embeddings, matrices = 2 * 65_536 * 1_280, 20 * 12 * 1_280**2
    assert held.parameters == 4 * (embeddings + matrices)
    # shared out over 8 devices, the stacks of 20 layers filled up to 24; 40 keys and values divide
    stacks = 24 * 10 * 1_280**2 + 40 * 1_280**2
    assert held.optimizer == 4 * (2 * embeddings + stacks) // 8
    # 32 rows of 2048 tokens, 20 layers of 18 values of width 1280 and 5 more, 2 bytes
    assert held.activations == 32 * 2_048 * (20 * 18 + 5) * 1_280 * 2
    # 8192 tokens at once, the logits and their gradient in 2 bytes
    assert held.logits == 2 * 8_192 * 65_536 * 2
    assert held.peak == held.parameters + held.optimizer + held.batch + held.loss


def test_cards_are_offered_the_largest_micro_batch_that_divides_a_step():
    plan = plan_of("tier_100")
    # 32 rows a device and step
    rows = {card.memory_bytes / 1e9: (card.rows, card.accumulation) for card in plan.cards}
    assert rows == {8: (0, 32), 12: (1, 32), 24: (4, 8), 80: (32, 1), 141: (32, 1)}
    for card in plan.cards:
        assert (card.peak <= 0.92 * card.memory_bytes) == (card.rows > 0)
    lines = render(plan).splitlines()
    assert next(line.split() for line in lines if line.startswith("  24 GB"))[:4] == [
        "24", "GB", "4", "8",
    ]  # fmt: skip
    assert any(line.startswith("  8 GB") and line.endswith("with 1") for line in lines)


def test_fewer_devices_leave_less_room():
    alone, eight = (plan_of("tier_100", f"hardware.devices={n}") for n in (1, 8))
    assert alone.memory.optimizer > 6 * eight.memory.optimizer
    assert (alone.cards[1].rows, eight.cards[1].rows) == (0, 1)


def test_a_micro_batch_that_does_not_fit_is_said():
    plan = plan_of("tier_1000", "base.micro_rows=32")
    assert not plan.fits
    assert "does not fit: lower base.micro_rows" in render(plan)
    assert "does not fit" not in render(plan_of("tier_1000"))


@pytest.mark.parametrize(
    ("name", "total", "tokens"),
    [
        ("tier_100", 560_988_160, 11_219_763_200),
        ("tier_300", 1_081_999_360, 41_275 * 2**19),
        ("tier_1000", 1_879_048_192, 37_580_963_840),
        ("gpt2", 1_384_122_122, 8 * 729_810_624 // 2**20 * 2**20),
    ],
)
def test_published_tiers(name, total, tokens):
    plan = plan_of(name)
    assert (plan.params["total"], plan.stages[0].tokens) == (total, tokens)
    assert plan.fits
    text = render(plan)
    assert f"{total:,} parameters" in text
    assert all(stage in text for stage in ("base", "mid", "sft", "rl"))


def test_the_evaluation_of_tier_100_is_whole_tasks_at_512_tokens():
    parts = {part.what: part for part in plan_of("tier_100").evaluation}
    assert {name: part.each for name, part in parts.items()} == {
        "CORE": 0, "bits per byte": 5_120, "bits per byte, train": 5_120, "arc_easy": 2_376,
        "arc_challenge": 1_172, "mmlu": 14_042, "gsm8k": 1_319, "humaneval": 164, "counting": 256,
        "mean reward": 400 * 8,
    }  # fmt: skip
    gsm8k = parts["gsm8k"]
    assert gsm8k.models == ("mid", "sft", "rl")
    assert gsm8k.decoded == 3 * 1_319 * 512
    # a third of training's FLOPs a token: decoding at 2.5% of 8 devices, reading at 45%
    rate = 8 * 989e12 / (3_491_758_080 / 3)
    assert gsm8k.seconds == pytest.approx(gsm8k.decoded / 0.025 / rate + gsm8k.read / 0.45 / rate)
    assert gsm8k.dollars == pytest.approx(gsm8k.seconds * 24 / 3600)
    assert parts["mmlu"].decoded == 0
    text = render(plan_of("tier_100"))
    assert "Evaluation, an estimate" in text
    assert any(line.split()[:6] == ["gsm8k", "1,319", "mid", "sft", "rl", "395.7k"]
               for line in text.splitlines())  # fmt: skip


def test_more_problems_than_a_dataset_has_are_all_of_it():
    parts = {part.what: part for part in plan_of("tier_100", "eval.problems=500").evaluation}
    assert (parts["gsm8k"].each, parts["humaneval"].each, parts["counting"].each) == (500, 164, 256)


@pytest.mark.parametrize(
    "name", ["tier_100", "tier_300", "tier_1000", "gpt2", "tpu_v5e8", "tier_cpu"]
)
def test_a_plan_says_whether_rl_runs_and_how_to_leave_it_out(name):
    with_rl, without = plan_of(name), plan_of(name, "rl.steps=0")
    steps = with_rl.config.rl.steps
    assert f"RL runs: {steps:,} steps on" in render(with_rl)
    assert "--set rl.steps=0 leaves it out" in render(with_rl)
    assert "RL is left out (rl.steps is 0): chat talks to the model of sft." in render(without)
    assert [stage.name for stage in without.stages] == ["base", "mid", "sft"]
    assert all("rl" not in part.models for part in without.evaluation)
    assert "mean reward" not in {part.what for part in without.evaluation}
    assert without.seconds < with_rl.seconds
    head = (CONFIGS / f"{name}.toml").read_text().split("[run]")[0]
    assert "# RL " in head, "its head does not say whether RL runs"


@pytest.mark.parametrize(
    ("tier", "settings", "there"),
    [
        ("100", [], True),
        ("100", ["eval.bundle_url=none", "eval.vocabularies_url=none"], False),
        ("cpu", [], False),
    ],
)
def test_what_comes_beside_the_data_is_said_with_its_size(tier, settings, there):
    planned = plan_of(f"tier_{tier}", *settings)
    printed = render(planned)
    assert ("eval_bundle    162.0 MB  CORE's tasks, for base" in printed) == there
    assert ("vocabularies     2.1 MB  GPT-2's and GPT-4's" in printed) == there


def test_the_held_out_shard_is_said():
    assert "240 of 1,822 shards, and the last one for validation" in render(plan_of("tier_100"))
    text = render(plan_of("tier_100", "data.held_out_shard=239", "data.shards=239"))
    assert "239 of 1,822 shards, and number 239 for validation" in text


def test_a_stage_without_steps_is_one_pass_over_its_conversations():
    settings = ("mid.steps=0", "mid.conversations=1024", "mid.batch_tokens=4096")
    plan = plan_of("tier_cpu", *settings, "mid.text_share=0")
    assert plan.stages[1].steps == 1_024 * 40 // 4_096
    with_text = plan_of("tier_cpu", *settings, "mid.text_share=1.5")
    assert with_text.stages[1].steps == 5 * 1_024 * 40 // (2 * 4_096)
    assert with_text.disk["rows"] > plan.disk["rows"]
    assert plan_of("tier_cpu", "mid.steps=7").stages[1].steps == 7


def test_the_config_of_the_small_machine_costs_nothing_and_fits():
    plan = plan_of("tier_cpu")
    assert plan.dollars == 0
    assert plan.fits
    assert sum(plan.disk.values()) < 200e6


def test_more_devices_take_less_time():
    one, eight = (plan_of("tier_100", f"hardware.devices={n}") for n in (1, 8))
    assert math.isclose(one.seconds, 8 * eight.seconds)


def test_numbers_are_short():
    assert [count(n) for n in (999, 1_000, 11_219_763_200)] == ["999", "1.0k", "11.2B"]
    assert [size(n) for n in (12, 80e9, 1.5e12)] == ["12 B", "80.0 GB", "1.5 TB"]
