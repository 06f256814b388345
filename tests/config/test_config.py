"""Configuration: what is refused, and in what words."""

import pytest

from jaxchat.config import loading
from jaxchat.config.fields import build, hashed_settings
from jaxchat.config.operations import HardwareConfig
from jaxchat.config.schema import (
    ComputeConfig,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    TokenizerConfig,
    TrainConfig,
)
from jaxchat.errors import ConfigError


@pytest.mark.parametrize(
    ("table", "key", "hint"),
    [
        ("base", "batch_token", "did you mean 'batch_tokens'?"),
        ("base", "stepz", "did you mean 'steps'?"),
        ("base", "zzz", "known keys are batch_tokens"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    table: str, key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(TrainConfig, {key: 1}, table)
    assert f"{table} has the unknown key {key!r}" in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TrainConfig, "steps", "100"),
        (TrainConfig, "steps", 1.5),
        (TrainConfig, "steps", True),
        (TrainConfig, "lr_scale", "fast"),
        (TrainConfig, "lr_scale", True),
        (TrainConfig, "lr_scale", float("nan")),
        (TrainConfig, "lr_scale", float("inf")),
        (TrainConfig, "mixture", ["identity"]),
        (TrainConfig, "mixture", "identity"),
        (TrainConfig, "mixture", {"identity": "half"}),
        (TrainConfig, "mixture", {"identity": float("nan")}),
        (ModelConfig, "smear", 1),
        (ModelConfig, "init", 3),
        (EvalConfig, "tasks", "identity"),
        (EvalConfig, "tasks", {"identity": 1.0}),
        (EvalConfig, "tasks", ["identity", 3]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(cls: type, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"table\.{key}"):
        build(cls, {key: value}, "table")


def test_what_toml_writes_differently_is_converted() -> None:
    train = build(TrainConfig, {"lr_scale": 2, "mixture": {"identity": 1}}, "base")
    assert (train.lr_scale, type(train.lr_scale)) == (2.0, float)
    assert train.mixture == {"identity": 1.0}
    assert build(EvalConfig, {"tasks": ["choice"]}, "eval").tasks == ("choice",)


@pytest.mark.parametrize(
    ("cls", "values", "said"),
    [
        (ModelConfig, {"n_layer": 0}, "model.n_layer is 0"),
        (ModelConfig, {"sequence_len": 1}, "model.sequence_len is 1"),
        (ModelConfig, {"n_embd": 100, "n_head": 3}, "100 .* 3"),
        (ModelConfig, {"n_head": 10, "n_kv_head": 4}, "10 .* 4"),
        (ModelConfig, {"n_embd": 30, "n_head": 10, "n_kv_head": 10}, "head size 3 is odd"),
        (ModelConfig, {"window_pattern": "SXL"}, "'SXL'"),
        (ModelConfig, {"window_pattern": ""}, "window_pattern is ''"),
        (ModelConfig, {"init": "random"}, "classic, modern"),
        (ModelConfig, {"softcap": -1.0}, "model.softcap is -1.0"),
        (OptimConfig, {"matrix_lr": -0.1}, "optim.matrix_lr is -0.1"),
        (OptimConfig, {"momentum": 1.0}, "optim.momentum is 1.0"),
        (OptimConfig, {"warmdown_ratio": 1.5}, "optim.warmdown_ratio is 1.5"),
        (OptimConfig, {"orthogonalizer": "svd"}, "newton_schulz, polar_express"),
        (TokenizerConfig, {"vocab_size": 264}, "264"),
        (DataConfig, {"source": "internet"}, "'internet'"),
        (TrainConfig, {"batch_tokens": 0}, "train.batch_tokens is 0"),
        (TrainConfig, {"mixture": {"identity": 0.0}}, "train.mixture.identity is 0.0"),
        (TrainConfig, {"loss_group": -1}, "train.loss_group is -1"),
        (RLConfig, {"samples_per_problem": 1}, "of 2 or more"),
        (RLConfig, {"temperature": 0.0}, "rl.temperature is 0.0"),
        (RLConfig, {"top_k": -1}, "rl.top_k is -1"),
        (RLConfig, {"loss_group": -8}, "rl.loss_group is -8"),
        (RLConfig, {"loss_group": 8, "samples_per_problem": 12}, "8 and rl.samples_.* is 12; .*"),
        (EvalConfig, {"problems": -1}, "eval.problems is -1"),
        (EvalConfig, {"models": ("chat",)}, r"eval.models\[0\] is 'chat'"),
        (MeshConfig, {"fsdp": 0}, "mesh.fsdp is 0"),
        (HardwareConfig, {"utilization": 0.0}, "hardware.utilization is 0.0"),
        (ComputeConfig, {"loss_chunk_rows": -1}, "compute.loss_chunk_rows is -1"),
        (ComputeConfig, {"compiler_options": ("xla_gpu_x",)}, "'xla_gpu_x'; it .* name=value"),
        (ComputeConfig, {"compiler_options": ("--xla_x=1",)}, "'--xla_x=1'"),
        (ComputeConfig, {"compiler_options": ("=1",)}, "'=1'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_value(
    cls: type, values: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        cls(**values)


def test_a_problem_of_few_samples_is_one_group_of_the_loss() -> None:
    groups = {n: RLConfig(samples_per_problem=n, loss_group=8).samples_averaged for n in (2, 8, 24)}
    assert groups == {2: 2, 8: 8, 24: 8}
    assert RLConfig(samples_per_problem=12).samples_averaged == 0


def test_the_paid_tiers_weigh_the_loss_and_sample_as_nanochat_and_cpu_as_it_did() -> None:
    tiers = {name: loading.load(path) for name, path in loading.tiers().items()}
    reported = {
        name: (c.mid.loss_group, c.sft.loss_group, c.rl.loss_group, c.rl.top_k)
        for name, c in tiers.items()
    }
    november, july = (0, 4, 8, 50), (0, 0, 8, 50)
    assert reported == {
        "cpu": (0, 0, 0, 0), "100": november, "300": november, "1000": november, "gpt2": july,
        "tpu_v5e8": november,
        **dict.fromkeys(("best_40", "best_100", "best_300", "best_1000"), july),
        "one_gpu_24gb": july, "one_gpu_80gb": july,
    }  # fmt: skip


def test_text_has_no_groups_of_conversations() -> None:
    with pytest.raises(ConfigError, match=r"base\.loss_group is 4; text has no conversations"):
        loading.load(loading.find_tier("cpu"), ["base.loss_group=4"])
    loading.load(loading.find_tier("cpu"), ["mid.loss_group=4", "sft.loss_group=1"])


def test_no_more_tokens_can_be_drawn_from_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"rl\.top_k is 5000000000; the vocabulary has 1024"):
        loading.load(loading.find_tier("cpu"), ["rl.top_k=5000000000"])
    loading.load(loading.find_tier("cpu"), ["rl.top_k=1024"])


def test_settings_of_the_loss_are_in_no_hash_of_runs_that_do_not_set_them() -> None:
    """Stages of runs made before there were such settings stay complete."""
    assert not {"loss_group", "top_k"} & {
        *hashed_settings(TrainConfig()),
        *hashed_settings(RLConfig()),
    }
    assert hashed_settings(TrainConfig(loss_group=4))["loss_group"] == 4
    assert hashed_settings(RLConfig(top_k=50))["top_k"] == 50


def test_defaults_are_valid() -> None:
    for cls in (
        ModelConfig, OptimConfig, TokenizerConfig, DataConfig, TrainConfig, RLConfig, EvalConfig,
        MeshConfig, HardwareConfig, ComputeConfig,
    ):  # fmt: skip
        cls()
