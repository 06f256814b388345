"""How long a run's evaluation takes, reckoned from configuration and registry (layer 4).

All of it is an estimate. Whole rows (multiple choice, text, CORE) are a forward pass, a third of
the FLOPs of training, at the utilization of training. Decoding reads all weights for a token of
each row, and reaches far less of the peak.
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
_PROMPT_TOKENS = 40  # of a problem that is generated
# Of CORE's 22 tasks, what an example's choices share read once: 3.7M tokens of ten of them were
# counted, the others' are examples times a prompt's length.
CORE_TOKENS = 60_000_000


@dataclass(frozen=True)
class EvalPlan:
    """One thing that is measured.

    Attributes:
        models: of which models.
        each: problems, rows or samples of each model; 0: of CORE, all examples.
        read: tokens of prompts and texts, of all models.
        decoded: tokens of answers, of all models, if every answer takes all that it may.
    """

    what: str
    models: tuple[str, ...]
    each: int
    read: float
    decoded: float
    seconds: float
    dollars: float


def plan_eval(config: RunConfig) -> tuple[EvalPlan, ...]:
    """What the stage `eval` measures, in the order of the report."""
    models = tuple(name for name in MODELS if not config.leaves_out(name))
    return (
        *_core(config, models),
        *_text(config, models),
        *_tasks(config, tuple(name for name in models if name in config.eval.models)),
        *_reward(config, tuple(name for name in models if name in ("sft", "rl"))),
    )


def _core(config: RunConfig, models: tuple[str, ...]) -> Iterator[EvalPlan]:
    if "base" in models and (config.eval.bundle or config.data.source in registry.SOURCES):
        yield _plan(config, "CORE", ("base",), 0, read=CORE_TOKENS)


def _text(config: RunConfig, models: tuple[str, ...]) -> Iterator[EvalPlan]:
    length = config.model.sequence_len
    rows = -(-config.eval.text_tokens // length) or config.base.eval_rows
    trained = ("base",) if config.imported.trains("base") else ()
    for split, of in (("", models), (", train", trained)):
        if of:
            yield _plan(config, f"bits per byte{split}", of, rows, read=len(of) * rows * length)


def _tasks(config: RunConfig, models: tuple[str, ...]) -> Iterator[EvalPlan]:
    for name in config.eval.tasks if models else ():
        each = _problems(config, name, config.eval.problems, config.eval.generated)
        answers = 0 if name in BY_LETTERS else each * config.eval.max_new_tokens
        prompts = each * PROMPT_TOKENS.get(name, _PROMPT_TOKENS)
        yield _plan(
            config, name, models, each, read=len(models) * prompts, decoded=len(models) * answers
        )


def _reward(config: RunConfig, models: tuple[str, ...]) -> Iterator[EvalPlan]:
    rl, asked = config.rl, config.eval.rewarded
    if rl.steps and models:
        each = _problems(config, rl.task, asked, asked) * config.eval.reward_samples
        yield _plan(
            config, "mean reward", models, each,
            read=len(models) * each * PROMPT_TOKENS.get(rl.task, _PROMPT_TOKENS),
            decoded=len(models) * each * rl.max_new_tokens,
        )  # fmt: skip


def _problems(config: RunConfig, name: str, asked: int, generated: int) -> int:
    """Problems of a task: of a dataset at most those of its test split."""
    source = registry.SOURCES.get(name)
    if source is None:
        return generated
    there = source.rows.get("test", 0)
    return min(asked or there, there)


def _plan(
    config: RunConfig,
    what: str,
    models: tuple[str, ...],
    each: int,
    *,
    read: float,
    decoded: float = 0,
) -> EvalPlan:
    hardware, forward = config.hardware, flops_per_token(config.model) / 3
    # The letters of multiple choice are chosen on one device.
    devices = 1 if what in BY_LETTERS else hardware.devices
    seconds = forward * (
        read / (devices * hardware.peak_flops * hardware.utilization)
        + decoded / (hardware.devices * hardware.peak_flops * DECODING)
    )
    dollars = hardware.dollars_per_hour * seconds / 3600
    return EvalPlan(what, models, each, read, decoded, seconds, dollars)
