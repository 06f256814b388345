"""What stages hand on to each other."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.runs import stages
from jaxchat.runs.runner import Context, input_hash
from jaxchat.runs.train_stages import optimizer_before


def context_of(root: Path, tier: str, *overrides: str) -> Context:
    return Context(loading.load(loading.find_tier(tier), overrides), root)


def test_the_optimizer_of_the_stage_before_is_found_or_missed_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(tmp_path, "gpt2")
    assert optimizer_before(context, "mid") is None
    assert "mid: base kept no checkpoint, so the optimizer starts fresh" in capsys.readouterr().out
    (tmp_path / "base" / "checkpoints").mkdir(parents=True)
    before = optimizer_before(context, "mid")
    assert before is not None
    assert (before.checkpoints, before.optim) == (
        tmp_path / "base" / "checkpoints", context.config.optim,
    )  # fmt: skip
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stage", ["base", "mid", "sft", "rl"])
def test_nothing_is_missed_where_the_optimizer_starts_fresh(
    stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert optimizer_before(context_of(tmp_path, "100"), stage) is None
    assert capsys.readouterr().out == ""


def input_hash_settings(tier: str, stage: str, *overrides: str) -> str:
    config = loading.load(loading.find_tier(tier), overrides)
    row = next(one for one in stages.STAGES if one.name == stage)
    return repr(row.settings(config))


@dataclass(frozen=True)
class Change:
    override: str
    concerns: tuple[str, ...]


@pytest.mark.parametrize(
    "change",
    [
        Change("optim.warmdown_ratio=0.31", ("base",)),
        Change("optim.matrix_lr=0.031", ("base", "mid", "sft", "rl")),
        Change("mid_optim.warmdown_ratio=0.31", ("mid",)),
        Change("sft_optim.momentum=0.31", ("sft",)),
        Change("rl_optim.grad_clip=0.31", ("rl",)),
        Change("mid_optim.warm_start=true", ("mid",)),
    ],
    ids=lambda change: change.override,
)
def test_a_schedule_concerns_its_stage_alone(change: Change) -> None:
    names = [stage.name for stage in stages.STAGES if stage.name != "report"]
    changed = tuple(
        name
        for name in names
        if input_hash_settings("cpu", name) != input_hash_settings("cpu", name, change.override)
    )
    assert changed == change.concerns


# Of commit e90608a, where every stage before has the artifact "same"; the first digits.
MADE_BEFORE = {
    "cpu": {
        "data": "699af6dbe211", "tokenizer": "08d820f770d4", "rows": "ebe2278e19a4",
        "base": "6bc96289a85f", "mid": "e111a0d19a1c", "sft": "cf5f038043079",
        "rl": "5357cc55f1e2",
    },
    "100": {"data": "9a7f9b7db06a", "tokenizer": "a8d70e7b6e87", "base": "243fbdf30d46"},
    "300": {"data": "39b1cf3a8898", "tokenizer": "a8d70e7b6e87", "base": "ac6cb7a0ea7b"},
    "gpt2": {"data": "b293ddcf493c", "tokenizer": "c795aea402cc", "base": "4df5f34273c0"},
    "1000": {"data": "d40a99740130", "tokenizer": "a8d70e7b6e87", "base": "1d810911ab92"},
}  # fmt: skip

# The conversations of those runs, where a tier's file has other ones now.
CONVERSATIONS_BEFORE = {
    "cpu": (
        "mid.mixture={identity=0.85, arithmetic=0.3, arithmetic_two_step=0.3, spelling=3.6, "
        "counting=1, choice=2.3, facts=0.7, repeat=1.8}",
        "sft.mixture={identity=1, arithmetic=0.3, arithmetic_two_step=0.3, spelling=3.6, "
        "counting=1, choice=2.3}",
        "sft.text_share=0.0",
    )
}


@pytest.mark.parametrize("tier", MADE_BEFORE)
def test_runs_made_before_are_not_made_again(tier: str) -> None:
    context = context_of(Path(), tier, *CONVERSATIONS_BEFORE.get(tier, ()))
    context.done = {stage.name: {"results": {"artifact": "same"}} for stage in stages.STAGES}
    found = {stage.name: input_hash(stage, context) for stage in stages.STAGES}
    for name, digits in MADE_BEFORE[tier].items():
        assert found[name].startswith(digits), f"{name} of tier {tier} would be made again"


def test_further_conversations_concern_the_stages_that_read_them() -> None:
    names = [stage.name for stage in stages.STAGES if stage.name != "report"]
    before = CONVERSATIONS_BEFORE["cpu"]
    changed = [
        n for n in names if input_hash_settings("cpu", n) != input_hash_settings("cpu", n, *before)
    ]
    assert changed == ["tokenizer", "rows", "mid", "sft"]


@pytest.mark.parametrize(
    "own",
    [
        ("data.source=folder", "data.shards=0", "data.folder=%s"),
        ("data.persona=%s",),
        ('mid.epochs."%s.jsonl"=2',),
        ('sft.epochs."%s.jsonl"=2', "sft.epochs.gsm8k=1"),
        ("eval.bundle=%s",),
    ],
    ids=lambda own: own[-1],
)
def test_where_files_of_ones_own_are_is_in_no_hash_but_that_there_are_some(
    own: tuple[str, ...], tmp_path: Path
) -> None:
    def hashes(*overrides: str) -> dict[str, str]:
        context = context_of(tmp_path, "cpu", *overrides)
        context.done = {stage.name: {"results": {"artifact": "same"}} for stage in stages.STAGES}
        return {stage.name: input_hash(stage, context) for stage in stages.STAGES}

    here, there = (
        hashes(*(setting.replace("%s", name) for setting in own)) for name in ("here", "/a/there")
    )
    assert here == there
    assert here != hashes()


def test_the_same_file_in_another_stage_is_another_setting() -> None:
    of_mid, of_sft, of_both = (
        input_hash_without_places(*(f'{stage}.epochs."a.jsonl"=1' for stage in names))
        for names in (["mid"], ["sft"], ["mid", "sft"])
    )
    assert len({of_mid, of_sft, of_both}) == 3


def input_hash_without_places(*overrides: str) -> str:
    return input_hash(stages.STAGES[0], context_of(Path(), "cpu", *overrides))
