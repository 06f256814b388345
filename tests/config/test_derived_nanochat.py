"""All that depth decides equals nanochat's, from its own code at depths 4 to 32.

bench/nanochat_peer/derived.py made the file. If you meant to derive something otherwise, say so in
docs/log.md.
"""

import dataclasses
import json
import tomllib
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.config.derive import count_params, flops_per_token, scaling_params
from jaxchat.config.loading import from_document
from jaxchat.config.schema import PRESETS, ModelConfig, OptimConfig
from jaxchat.optim import schedule
from jaxchat.optim.param_groups import parameter_table

RUNS = json.loads((Path(__file__).parents[1] / "golden" / "nanochat_derived.json").read_text())
OURS = {  # nanochat's argument: where we have it
    "depth": "run.depth",
    "vocab_size": "tokenizer.vocab_size",
    "max_seq_len": "model.sequence_len",
    "window_pattern": "model.window_pattern",
    "short_seq_len": "model.short_window",
    "total_batch_size": "base.batch_tokens",
    "target_param_data_ratio": "run.data_ratio",
}
COUNTS = {"transformer_matrices": "matrices"}  # under another name here


def name_of(run):
    return " ".join([run["preset"], *(f"{k}={v}" for k, v in run["arguments"].items())])


@pytest.fixture(params=RUNS, ids=map(name_of, RUNS))
def run(request):
    return request.param


def config_of(run):
    """Our configuration of a run, through a TOML document as a user would write it."""
    lines = [f'run.name = "x"\nrun.preset = "{run["preset"]}"']
    lines += [f"{OURS[key]} = {json.dumps(value)}" for key, value in run["arguments"].items()]
    return from_document(tomllib.loads("\n".join(lines)), "test")


def test_there_is_a_run_for_every_even_depth_of_every_preset():
    for preset in PRESETS:
        depths = {run["arguments"]["depth"] for run in RUNS if run["preset"] == preset}
        assert depths >= set(range(4, 33, 2))


def test_model_batch_and_horizon(run):
    config = config_of(run)
    model = config.model
    assert (model.n_embd, model.n_head) == (run["width"], run["heads"])
    counts = count_params(model)
    assert {name: counts[COUNTS.get(name, name)] for name in run["params"]} == run["params"]
    assert scaling_params(model, run["preset"]) == run["scaling_params"]
    assert flops_per_token(model) == run["flops_per_token"]
    assert (config.base.batch_tokens, config.base.steps) == (run["batch_tokens"], run["steps"])
    assert config.base.batch_tokens * config.base.steps == run["tokens"]


def test_rates_betas_and_decays_of_every_group(run):
    config = config_of(run)
    assert config.optim.grad_clip == run.get("grad_clip", 0.0)
    rows = {group.label: group for group in parameter_table(config.model, config.optim)}
    for name, want in run["groups"].items():
        row = rows[label_of(name)]
        assert row.rate == pytest.approx(want["rate"], rel=1e-12), name
        if row.kind == "muon":
            assert config.optim.weight_decay == pytest.approx(want["decay"], rel=1e-12)
        else:
            assert row.decay == want["decay"], name
            assert [row.beta1, row.beta2] == want["betas"], name


def label_of(name):
    """The row of our table for nanochat's first parameter of a group."""
    labels = {
        "matrix": "matrix",
        nanochat_name(("lm_head", "kernel")): "head",
        nanochat_name(("wte", "embedding")): "embedding",
        nanochat_name(("resid_lambdas",)): "residual",
        nanochat_name(("x0_lambdas",)): "x0",
        nanochat_name(("smear_gate", "kernel")): "smear",
        nanochat_name(("backout_lambda",)): "smear",
        nanochat_name(("value_embeds_0", "embedding")): "value_embedding",
        nanochat_name(("value_embeds_1", "embedding")): "value_embedding",
    }
    return labels[name]


def test_schedules(run):
    config = config_of(run)
    steps = jnp.asarray(run["schedules"]["step"], jnp.int32)
    schedules = {
        "rate": schedule.rate_multiplier,
        "momentum": schedule.momentum,
        "decay": schedule.decay,
    }
    for name, want in run["schedules"].items():
        if name != "step":
            found = schedules[name](config.optim, config.base.steps)(steps)
            assert found.tolist() == pytest.approx(want, rel=1e-5, abs=1e-7), name


def test_switches_of_the_presets():
    """Those of ModelConfig and OptimConfig that no number above shows."""
    of = {p: config_of({"preset": p, "arguments": {"depth": 4}}) for p in PRESETS}
    assert of["classic"].optim == OptimConfig()
    off = ModelConfig()
    for name in ("rope_base", "qk_scale", "value_embeds", "residual_scalars", "smear", "backout"):
        assert getattr(of["classic"].model, name) == getattr(off, name)
        assert getattr(of["modern"].model, name) != getattr(off, name)
    plain = dataclasses.asdict(OptimConfig())
    modern = dataclasses.asdict(of["modern"].optim)
    for name in ("orthogonalizer", "equilibrate_rows", "renormalize", "normuon", "cautious_decay"):
        assert modern[name] != plain[name]


def test_september_is_july_but_for_its_five_changes():
    """Each a setting of its own; the fifth is the warmup of SFT, whose optimizer is fresh."""
    july, september = (
        config_of({"preset": p, "arguments": {"depth": 4}}) for p in ("modern", "september")
    )
    model = {"smear": False, "value_embeds_std": 1.0, "short_window": 512}
    assert dataclasses.replace(july.model, **model) == september.model
    rates = {"head_width_power": -1.0, "embedding_width_power": 0.0}
    assert dataclasses.replace(july.optim, **rates) == september.optim
    sft = {"warm_start": False, "warmup_ratio": 0.05}
    assert dataclasses.replace(july.sft_optim, **sft) == september.sft_optim
    assert july.rl_optim == september.rl_optim
    assert (july.base, july.data_ratio) == (september.base, september.data_ratio)
