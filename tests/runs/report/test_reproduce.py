"""The command in the report gives exactly the run's configuration."""

import shlex
from pathlib import Path

import pytest
from report_records import CONFIGS

from jaxchat.config import loading
from jaxchat.runs.report.reproduce import command


def again(printed: str) -> tuple[str, list[str]]:
    """The tier and the overrides of a command."""
    words = shlex.split(printed)
    assert words[:3] == ["python", "run_speedrun.py", "--tier"]
    assert words[4::2] == ["--set"] * len(words[5::2])
    return words[3], words[5::2]


@pytest.mark.parametrize(
    ("tier", "overrides"),
    [
        ("tier_cpu", []),
        ("gpt2", []),
        ("tier_cpu", ["base.steps=9"]),
        ("tier_cpu", ["run.name=it's", "mid.epochs={'a b.jsonl' = 2}", "mid.mixture={choice = 1}"]),
        ("tier_cpu", ["model.n_embd=96", "model.n_head=3", "model.n_kv_head=3"]),
        ("tier_100", ["run.depth=24", "compute.fp8=true", 'eval.tasks=["gsm8k"]']),
        ("tier_100", ["run.depth=2", "tokenizer.vocab_size=4096", "base.batch_tokens=4096",
                      "model.sequence_len=256", 'compute.compiler_options=["xla_a=b"]']),
        ("gpt2", ["run.data_ratio=8", "base.batch_tokens=1_048_576", "optim.matrix_lr=1e-05"]),
        ("tier_cpu", loading.own_text('a "quoted" folder')),
    ],
)  # fmt: skip
def test_it_gives_the_same_configuration(tier: str, overrides: list[str]) -> None:
    config = loading.load(CONFIGS / f"{tier}.toml", overrides)
    named, printed = again(command(config, CONFIGS))
    assert f"{tier}".removeprefix("tier_") == named
    assert loading.load(CONFIGS / f"{tier}.toml", printed) == config
    assert len(printed) <= len(overrides)


def test_without_tiers_there_is_no_command(tmp_path: Path) -> None:
    assert command(loading.load(CONFIGS / "tier_cpu.toml"), tmp_path) == ""
