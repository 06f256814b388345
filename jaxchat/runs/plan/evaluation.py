"""How long a run's evaluation takes, estimated from its configuration and the registry.

Whole rows (multiple choice, text, CORE) are a forward pass, a third of the FLOPs of training, at
the utilization of training. Decoding reads all weights for a token of each row, and reaches far
less of the peak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxchat.config.derive import flops_per_token
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.data import registry

# Of the peak, while 64 rows decode: d20 on one H100, 26,400 tokens a second (2026-11-27).
DECODING = 0.025
BY_LETTERS = ("arc_easy", "arc_challenge", "mmlu")
PROMPT_TOKENS = {"mmlu": 130, "arc_easy": 60, "arc_challenge": 65, "gsm8k": 100, "humaneval": 170}
GENERATED_PROMPT_TOKENS = 40
# Of CORE's 22 tasks, what an example's choices share read once: 3.7M tokens of ten of them were
# counted, the others' are examples times a prompt's length.
CORE_TOKENS = 60_000_000


@dataclass(frozen=True)
class EvalPlan:
    """One thing that is measured."""

    what: str
    models: tuple[str, ...]
    each: int  # problems, rows or samples of each model; 0: all examples, of CORE
    read: float  # tokens of prompts and texts, of all models
    decoded: float  # tokens of answers, of all models, if every answer takes all that it may
    seconds: float
    dollars: float


def plan_eval(config: RunConfig) -> tuple[EvalPlan, ...]:
    """What the stage `eval` measures, in the order of the report."""
    hardware, forward, plans = config.hardware, flops_per_token(config.model) / 3, []
    for what, models, each, of_prompts, of_answers in _work(config):
        read, decoded = of_prompts * len(models), of_answers * len(models)
        # The letters of multiple choice are chosen on one device.
        devices = 1 if what in BY_LETTERS else hardware.devices
        seconds = forward * (
            read / (devices * hardware.peak_flops * hardware.utilization)
            + decoded / (hardware.devices * hardware.peak_flops * DECODING)
        )
        dollars = hardware.dollars_per_hour * seconds / 3600
        plans.append(EvalPlan(what, models, each, read, decoded, seconds, dollars))
    return tuple(plans)


def _work(config: RunConfig) -> Iterator[tuple[str, tuple[str, ...], int, float, float]]:
    """What is measured; of which models; how many of each; tokens a model reads, and decodes."""
    settings, rl, length = config.eval, config.rl, config.model.sequence_len
    models = tuple(name for name in MODELS if not config.leaves_out(name))
    if "base" in models and (settings.bundle or config.data.source in registry.SOURCES):
        yield "CORE", ("base",), 0, CORE_TOKENS, 0
    rows = -(-settings.text_tokens // length) or config.base.eval_rows
    if models:
        yield "bits per byte", models, rows, rows * length, 0
    if config.imported.trains("base"):
        yield "bits per byte, train", ("base",), rows, rows * length, 0
    asked = tuple(name for name in models if name in settings.models)
    for name in settings.tasks if asked else ():
        each = _problems(name, settings.problems, settings.generated)
        answers = 0 if name in BY_LETTERS else each * settings.max_new_tokens
        yield name, asked, each, each * prompt_tokens(name), answers
    rewarded = tuple(name for name in models if name in ("sft", "rl"))
    if rl.steps and rewarded:
        each = _problems(rl.task, settings.rewarded, settings.rewarded) * settings.reward_samples
        prompts, answers = each * prompt_tokens(rl.task), each * rl.max_new_tokens
        yield "mean reward", rewarded, each, prompts, answers


def prompt_tokens(task: str) -> int:
    """Tokens of a task's prompt, about."""
    return PROMPT_TOKENS.get(task, GENERATED_PROMPT_TOKENS)


def _problems(task: str, asked: int, generated: int) -> int:
    """Problems of a task: of a dataset at most those of its test split."""
    source = registry.SOURCES.get(task)
    if source is None:
        return generated
    there = source.rows.get("test", 0)
    return min(asked or there, there)
