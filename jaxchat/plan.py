"""What a run would take, reckoned from its configuration alone: no jax, no disk (layer 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jaxchat.config import RunConfig, TrainConfig
from jaxchat.progress import duration
from jaxchat.scaling import count_params, flops_per_token

# What a layer keeps for the backward pass, in values of width D a token: the residual and its norm,
# q, k, v as they are and normalised, the attended values (8); the residual and its norm again, the
# hidden units before and after the nonlinearity, 4 D each (10).
ACTIVATIONS_PER_LAYER = 18
MASTER_BYTES = 4  # weights, gradients and optimizer state are float32
TOKENS_PER_CONVERSATION = 40  # of the generated ones, with special tokens
CHARACTERS_PER_TOKEN = {"machine": 3.0, "fineweb_edu": 4.8, "climbmix": 4.8}
CHECKPOINTS_KEPT = 2
MODELS_KEPT = 4  # base, mid, sft, rl


@dataclass(frozen=True)
class StagePlan:
    """What one training stage takes."""

    name: str
    steps: int
    step_tokens: int
    flops: float
    seconds: float
    dollars: float

    @property
    def tokens(self) -> int:
        """Tokens the stage processes."""
        return self.steps * self.step_tokens


@dataclass(frozen=True)
class Plan:
    """What a whole run takes. Memory is that of one device, in bytes by use; disk likewise."""

    config: RunConfig
    params: Mapping[str, int]
    flops_per_token: int
    stages: tuple[StagePlan, ...]
    memory: Mapping[str, float]
    disk: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Training time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def dollars(self) -> float:
        """What that time costs."""
        return sum(stage.dollars for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it."""
        return sum(self.memory.values()) <= self.config.hardware.memory_bytes


def make_plan(config: RunConfig) -> Plan:
    """Reckons a run; a pure function of its configuration."""
    return Plan(
        config=config,
        params=count_params(config.model),
        flops_per_token=flops_per_token(config.model),
        stages=(
            *(_train_stage(config, name) for name in ("base", "mid", "sft")),
            _rl_stage(config),
        ),
        memory=plan_memory(config),
        disk=plan_disk(config),
    )


def _train_stage(config: RunConfig, name: str) -> StagePlan:
    train: TrainConfig = getattr(config, name)
    generated = train.conversations * TOKENS_PER_CONVERSATION
    steps = train.steps or max(1, generated // train.batch_tokens)
    return _stage(config, name, steps, train.batch_tokens, flops_per_token(config.model))


def _rl_stage(config: RunConfig) -> StagePlan:
    """Every sample at its full length; sampling is one more forward pass, a third of training."""
    rl = config.rl
    tokens = rl.problems_per_step * rl.samples_per_problem * rl.max_new_tokens
    return _stage(config, "rl", rl.steps, tokens, flops_per_token(config.model) * 4 / 3)


def _stage(
    config: RunConfig, name: str, steps: int, step_tokens: int, token_flops: float
) -> StagePlan:
    hardware = config.hardware
    flops = token_flops * steps * step_tokens
    seconds = flops / (hardware.devices * hardware.peak_flops * hardware.utilization)
    dollars = hardware.dollars_per_hour * seconds / 3600
    return StagePlan(name, steps, step_tokens, flops, seconds, dollars)


def optimizer_values(config: RunConfig) -> int:
    """Numbers the optimizer keeps: Muon one a weight (its momentum), AdamW two."""
    counts = count_params(config.model)
    return counts["matrices"] + 2 * (counts["total"] - counts["matrices"])


def plan_memory(config: RunConfig) -> dict[str, float]:
    """Bytes of one device while the base model trains. All is replicated but the batch."""
    model, total = config.model, count_params(config.model)["total"]
    rows = min(config.base.micro_rows, _rows_per_device(config))
    per_token = ACTIVATIONS_PER_LAYER * model.n_layer * model.n_embd
    return {
        "weights": MASTER_BYTES * total,
        "gradients": MASTER_BYTES * total,
        "optimizer": MASTER_BYTES * optimizer_values(config),
        "activations": config.hardware.compute_bytes * rows * model.sequence_len * per_token,
    }


def _rows_per_device(config: RunConfig) -> int:
    rows = config.base.batch_tokens // config.model.sequence_len
    return max(1, rows // config.hardware.devices)


def plan_disk(config: RunConfig) -> dict[str, float]:
    """Bytes under the home once all is done, and the checkpoints of the stage that runs."""
    base = config.base
    total = count_params(config.model)["total"]
    tokens = base.steps * base.batch_tokens
    text = tokens * CHARACTERS_PER_TOKEN[config.data.source]
    if config.data.source == "machine":  # small: kept whole, and read more than once
        text = config.data.max_chars
        generated = config.mid.conversations + config.sft.conversations
        tokens = int(text / CHARACTERS_PER_TOKEN["machine"]) + TOKENS_PER_CONVERSATION * generated
    return {
        "text": text,
        "rows": tokens * (2 if config.model.vocab_size <= 2**16 else 4),
        "checkpoints": CHECKPOINTS_KEPT * MASTER_BYTES * (total + optimizer_values(config)),
        "models": MODELS_KEPT * MASTER_BYTES * total,
    }


def render(plan: Plan) -> str:
    """The plan as text for a terminal."""
    config = plan.config
    return "\n".join(
        [
            f"{config.name}: {plan.params['total']:,} parameters, "
            f"{count(plan.stages[0].tokens)} tokens, {_cost(plan.seconds, plan.dollars)} of "
            f"training on {config.hardware.devices} x {config.hardware.name}",
            "",
            *_model_lines(plan),
            "",
            *_stage_lines(plan),
            "",
            *_memory_lines(plan),
            "",
            f"Disk  {size(sum(plan.disk.values()))}: "
            + ", ".join(f"{name} {size(value)}" for name, value in plan.disk.items()),
        ]
    )


def _model_lines(plan: Plan) -> list[str]:
    config, model = plan.config, plan.config.model
    rows = [(name, f"{value:,}") for name, value in plan.params.items() if value]
    rows.append(("FLOPs per token", f"{plan.flops_per_token:.3g}"))
    return [
        f"Model  {config.preset}, depth {config.depth}: width {model.n_embd:,}, {model.n_head} "
        f"heads of {model.head_dim}, vocabulary {model.vocab_size:,}, context "
        f"{model.sequence_len:,}",
        *table(rows),
    ]


def _stage_lines(plan: Plan) -> list[str]:
    config, hardware = plan.config, plan.config.hardware
    rows = [("stage", "steps", "tokens/step", "tokens", "FLOPs", "time", "cost")]
    rows += [
        (
            stage.name,
            f"{stage.steps:,}",
            f"{stage.step_tokens:,}",
            count(stage.tokens),
            f"{stage.flops:.3g}",
            duration(stage.seconds),
            f"${stage.dollars:,.2f}",
        )
        for stage in plan.stages
    ]
    rows.append(("total", "", "", "", "", duration(plan.seconds), f"${plan.dollars:,.2f}"))
    rows_each = min(config.base.micro_rows, _rows_per_device(config))
    accumulated = max(1, _rows_per_device(config) // rows_each)
    return [
        "Training",
        *table(rows),
        f"  A step of base is {hardware.devices} devices x {rows_each} rows x "
        f"{config.model.sequence_len:,} tokens x {accumulated} accumulated.",
        f"  Time is FLOPs / (devices x {hardware.peak_flops:.3g} FLOP/s x "
        f"{hardware.utilization:.0%}), at ${hardware.dollars_per_hour:g} an hour. Not in it: data, "
        "compiling, evaluation,",
        "  and that sampling in rl is slower than training; its samples count at full length.",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    hardware = plan.config.hardware
    used = sum(plan.memory.values())
    verdict = "" if plan.fits else "  It does not fit: lower base.micro_rows."
    return [
        f"Memory per device  {size(used)} of {size(hardware.memory_bytes)}{verdict}",
        *table([(name, size(value)) for name, value in plan.memory.items()]),
        "  Weights, gradients and optimizer state in fp32 (AdamW keeps 2 numbers each, Muon 1);",
        f"  activations: {ACTIVATIONS_PER_LAYER} values of the width a layer and token, "
        f"{hardware.compute_bytes} bytes each; logits come in chunks.",
    ]


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def count(value: float) -> str:
    """11219763200 -> `11.2B`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


def size(value: float) -> str:
    """80e9 -> `80.0 GB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def _cost(seconds: float, dollars: float) -> str:
    return f"{duration(seconds)} (${dollars:,.0f})"
