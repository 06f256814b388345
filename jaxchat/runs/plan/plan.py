"""What a run would take, reckoned from its configuration alone: no jax, no disk (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxchat.config import memory
from jaxchat.config.derive import count_params, flops_per_token
from jaxchat.config.schema import MODELS, RunConfig, TrainConfig
from jaxchat.progress import duration
from jaxchat.runs.plan import data
from jaxchat.runs.plan.evaluation import DECODING, EvalPlan, plan_eval
from jaxchat.runs.tables import count, size, table

MASTER_BYTES = 4  # weights, gradients and optimizer state are float32
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
class Card:
    """The largest micro-batch of the base model on devices of so many bytes."""

    memory_bytes: float
    rows: int  # 0: not even one row fits
    accumulation: int
    peak: int  # with these rows, or with one


@dataclass(frozen=True)
class Plan:
    """What a whole run takes; disk in bytes by use."""

    config: RunConfig
    params: Mapping[str, int]
    flops_per_token: int
    stages: tuple[StagePlan, ...]
    evaluation: tuple[EvalPlan, ...]
    memory: memory.Memory  # of one device, while the base model trains
    cards: tuple[Card, ...]
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
        return self.memory.peak <= room(self.config.hardware.memory_bytes)


def make_plan(config: RunConfig) -> Plan:
    """Reckons a run; a pure function of its configuration."""
    return Plan(
        config=config,
        params=count_params(config.model),
        flops_per_token=flops_per_token(config.model),
        stages=(
            *(_train_stage(config, name) for name in ("base", "mid", "sft")),
            *([_rl_stage(config)] if config.rl.steps else []),
        ),
        evaluation=plan_eval(config),
        memory=memory.predict(stage_step(config)),
        cards=tuple(plan_card(config, size * 1e9) for size in memory.CARDS),
        disk=plan_disk(config),
    )


def _train_stage(config: RunConfig, name: str) -> StagePlan:
    train: TrainConfig = getattr(config, name)
    steps = train.steps or max(1, data.chat_tokens(train) // train.batch_tokens)
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


def stage_step(config: RunConfig, stage: str = "base") -> memory.Step:
    """The step of base, mid or sft on one device; a run computes in bf16 on GPUs, else in fp32."""
    train: TrainConfig = getattr(config, stage)
    device_rows = _rows_per_device(config, train)
    rows = min(train.micro_rows, device_rows)
    return memory.Step(
        model=config.model,
        optim=config.optim_of(stage),
        rows=rows,
        accumulation=max(1, device_rows // rows),
        mesh=memory.mesh_of(config.mesh, config.hardware.devices),
        platform="gpu" if config.hardware.compute_bytes < memory.WIDE else "cpu",
        compute_bytes=config.hardware.compute_bytes,
        chunk_rows=config.compute.loss_chunk_rows,
    )


def plan_card(config: RunConfig, memory_bytes: float) -> Card:
    """What the base model's `micro_rows` can be where devices have so much memory."""
    step, device_rows = stage_step(config), _rows_per_device(config, config.base)
    rows = memory.largest_rows(step, device_rows, room(memory_bytes))
    fitting = memory.with_rows(step, max(rows, 1), device_rows)
    return Card(memory_bytes, rows, fitting.accumulation, memory.predict(fitting).peak)


def room(memory_bytes: float) -> float:
    """What of a device's memory a plan uses."""
    return memory_bytes * (1 - memory.MARGIN)


def _rows_per_device(config: RunConfig, train: TrainConfig) -> int:
    """Rows of a step that one device takes, all micro-batches together."""
    rows = train.batch_tokens // config.model.sequence_len
    return max(1, rows // memory.mesh_of(config.mesh, config.hardware.devices).shards)


def plan_disk(config: RunConfig) -> dict[str, float]:
    """Bytes under the home once all is done, and the checkpoints at their most."""
    total = count_params(config.model)["total"]
    text = data.plan_text(config)
    chats = sum(chat.download for chat in data.plan_chat(config))
    extras = sum(of for of, _ in data.plan_extras(config).values())
    chat_tokens = sum(data.chat_tokens(train) for train in (config.mid, config.sft))
    # one more of a stage whose optimizer the next one starts with
    checkpoints = CHECKPOINTS_KEPT + sum(config.starts_warm(stage) for stage in MODELS)
    return {
        "text": (text.download or text.characters) + chats + extras,
        "rows": (text.tokens + chat_tokens) * (2 if config.model.vocab_size <= 2**16 else 4),
        "checkpoints": checkpoints * MASTER_BYTES * (total + optimizer_values(config)),
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
            *_data_lines(plan),
            "",
            *_stage_lines(plan),
            "",
            *_eval_lines(plan),
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


def _data_lines(plan: Plan) -> list[str]:
    config = plan.config
    text = data.plan_text(config)
    told = [f"{size(text.download)} to download"] if text.download else []
    if text.tokens:
        passes = plan.stages[0].tokens / text.tokens
        told.append(
            f"about {count(text.characters)} characters, {count(text.tokens)} tokens; training "
            f"reads {passes:.2f} passes"
        )
    rows = []
    for chat in data.plan_chat(config):
        read = ", ".join(f"{number:,} in {stage}" for stage, number in chat.conversations.items())
        size_told = size(chat.download) if chat.download else "your own"
        rows.append((chat.name, size_told, read))
    rows += [(name, size(of), told) for name, (of, told) in data.plan_extras(config).items()]
    generated = {name: getattr(config, name).conversations for name in ("mid", "sft")}
    counts = ", ".join(f"{number:,} in {stage}" for stage, number in generated.items() if number)
    if counts:
        rows.append(("generated", "0 B", counts))
    return [
        f"Data  {text.what}",
        *(f"  {part}" for part in [", ".join(told)] if part),
        *(_notes(rows) if rows else ()),
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
    rows_each = min(config.base.micro_rows, _rows_per_device(config, config.base))
    accumulated = max(1, _rows_per_device(config, config.base) // rows_each)
    return [
        "Training",
        *table(rows),
        f"  A step of base is {hardware.devices} devices x {rows_each} rows x "
        f"{config.model.sequence_len:,} tokens x {accumulated} accumulated.",
        f"  Time is FLOPs / (devices x {hardware.peak_flops:.3g} FLOP/s x "
        f"{hardware.utilization:.0%}), at ${hardware.dollars_per_hour:g} an hour. Not in it: "
        "downloads, compiling, evaluation,",
        "  and that sampling in rl is slower than training; its samples count at full length.",
        *_rl_lines(config),
    ]


def _rl_lines(config: RunConfig) -> list[str]:
    """Whether reinforcement learning runs, and what to do for the other."""
    rl = config.rl
    if not rl.steps:
        return ["  RL is left out (rl.steps is 0): chat talks to the model of sft."]
    return [
        f"  RL runs: {rl.steps:,} steps on {rl.task}, then chat talks to its model. "
        "--set rl.steps=0 leaves it out."
    ]


def _eval_lines(plan: Plan) -> list[str]:
    rows = [("measured", "of each", "models", "tokens read", "decoded at most", "time", "cost")]
    rows += [
        (
            part.what,
            f"{part.each:,}" if part.each else "all",
            " ".join(part.models),
            count(part.read),
            count(part.decoded) if part.decoded else "",
            duration(part.seconds),
            f"${part.dollars:,.2f}",
        )
        for part in plan.evaluation
    ]
    seconds, dollars = (sum(getattr(p, n) for p in plan.evaluation) for n in ("seconds", "dollars"))
    rows.append(("total", "", "", "", "", duration(seconds), f"${dollars:,.2f}"))
    return [
        "Evaluation, an estimate",
        *table(rows),
        "  Answers count at their full length; most end sooner. Decoding is reckoned at "
        f"{DECODING:.1%} of the peak, measured",
        "  on one H100 with 64 rows; whole rows as training. Not in it: compiling, and running the "
        "programs of HumanEval.",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    held, hardware, step = plan.memory, plan.config.hardware, stage_step(plan.config)
    verdict = "" if plan.fits else "  It does not fit: lower base.micro_rows."
    mesh = f"data={step.mesh.data}, fsdp={step.mesh.fsdp}, tensor={step.mesh.tensor}"
    rows = [
        ("parameters", held.parameters, "fp32"),
        ("optimizer", held.optimizer, "fp32, shared out: AdamW 2 numbers a parameter, Muon 1"),
        ("batch", held.batch, ""),
        ("weights", held.weights, "copies that are computed with"),
        ("gradients", held.gradients, "while the loss is computed"),
        ("activations", held.activations, f"{step.rows} rows, {step.compute_bytes} bytes each"),
        ("logits", held.logits, "of one chunk of tokens, fp32"),
        (
            "or: update",
            held.update,
            "instead of the four above: gradients and the optimizer's work",
        ),
    ]
    return [
        f"Memory per device  {size(held.peak)} of {size(hardware.memory_bytes)} at the peak of a "
        f"step of base, {mesh}{verdict}",
        *_notes([(name, size(value), note) for name, value, note in rows]),
        "",
        f"Largest micro-batch of base by memory of a card, {memory.MARGIN:.0%} of it held back",
        *table([("card", "base.micro_rows", "accumulated", "peak"), *map(_card, plan.cards)]),
        f"  A run takes {1 - memory.MARGIN:.0%} of a GPU's memory, unless "
        "XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.",
    ]


def _card(card: Card) -> tuple[str, str, str, str]:
    name = f"{card.memory_bytes / 1e9:g} GB"
    if not card.rows:
        return name, "none", "", f"{size(card.peak)} with 1"
    return name, str(card.rows), str(card.accumulation), size(card.peak)


def _notes(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """A table of names and values, with a remark after each."""
    lines = table([(name, value) for name, value, _ in rows])
    return [f"{line}  {note}".rstrip() for line, (_, _, note) in zip(lines, rows, strict=True)]


def _cost(seconds: float, dollars: float) -> str:
    return f"{duration(seconds)} (${dollars:,.0f})"
