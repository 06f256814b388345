"""What each stage depends on: settings, and artefacts of others (layer 4).

`stages` adds what they do. Whether a stage that is complete is still what the run's settings would
make is told by these alone (`pipeline.input_hash`), and so also by who makes nothing: the report.
"""

from __future__ import annotations

from typing import Any

from jaxchat.config.fields import hashed_settings
from jaxchat.config.schema import MODELS, RLConfig, RunConfig, TrainConfig
from jaxchat.data import inputs, prepare
from jaxchat.runs.runner import Inputs

# How a stage is computed, saved and watched. With other ones it goes on: on other devices, with
# less memory, after a spike.
HOW = (
    "micro_rows", "save_every", "keep", "keep_every", "spike", "rollbacks",
    "sample_every", "core_every", "core_examples",
)  # fmt: skip


def learned(train: TrainConfig | RLConfig) -> dict[str, Any]:
    """The settings that decide what a stage learns."""
    return {name: value for name, value in hashed_settings(train).items() if name not in HOW}


def warm_start(config: RunConfig, stage: str) -> tuple[str, ...]:
    """What the hash of a stage has of a warm start: nothing where there is none."""
    return ("warm start",) if config.starts_warm(stage) else ()


def rewarded(rl: RLConfig) -> tuple[str, ...]:
    """The settings that decide the mean reward, as `hashed_settings` would have them."""
    return (rl.task, f"top_k {rl.top_k}") if rl.top_k else (rl.task,)


_INPUTS = (
    Inputs(
        "data",
        lambda c: (c.data, c.tokenizer.max_chars, c.model.sequence_len, inputs.chat_names(c)),
    ),
    Inputs("tokenizer", lambda c: (c.tokenizer, prepare.spoken(c.mid), c.seed), ("data:text",)),
    Inputs(
        "rows",
        lambda c: (c.model.sequence_len, learned(c.mid), learned(c.sft), c.seed),
        ("data", "tokenizer"),
    ),
    Inputs(
        "base",
        lambda c: (c.model, c.optim, learned(c.base), c.compute.fp8, c.seed),
        ("rows:text", "tokenizer"),
    ),
    Inputs(
        "mid",
        lambda c: (c.optim_of("mid"), learned(c.mid), c.compute.fp8, c.seed, *warm_start(c, "mid")),
        ("base", "rows:mid", "tokenizer"),
    ),
    Inputs(
        "sft",
        lambda c: (c.optim_of("sft"), learned(c.sft), c.compute.fp8, c.seed, *warm_start(c, "sft")),
        ("mid", "rows:sft", "tokenizer"),
    ),
    Inputs(
        "rl",
        lambda c: (c.optim_of("rl"), learned(c.rl), c.compute.fp8, c.seed, c.eval.slots),
        ("sft", "data", "tokenizer"),
    ),
    Inputs(
        "eval",
        lambda c: (c.eval, c.seed, c.base.eval_rows, *rewarded(c.rl)),
        (*MODELS, "rows:text", "data", "tokenizer"),
    ),
    Inputs("report", lambda c: (c,), ("eval",)),
)
INPUTS = {one.name: one for one in _INPUTS}
