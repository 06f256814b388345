"""What a run would take, estimated from its configuration alone: no jax, no disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxchat.config import memory
from jaxchat.config.derive import count_params, flops_per_token
from jaxchat.config.operations import HardwareConfig
from jaxchat.config.schema import MODELS, RunConfig, TrainConfig
from jaxchat.progress import duration
from jaxchat.runs.plan import data
from jaxchat.runs.plan.evaluation import DECODING, EvalPlan, plan_eval
from jaxchat.runs.tables import count, size, table

FORMAT = "jaxchat-plan-1"
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
    """The largest micro-batch of the base model on devices of `memory_bytes`."""

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
    """Estimates a run; a pure function of its configuration."""
    return Plan(
        config=config,
        params=count_params(config.model),
        flops_per_token=flops_per_token(config.model),
        stages=tuple(_stages(config)),
        evaluation=plan_eval(config),
        memory=memory.predict(stage_step(config)),
        cards=tuple(plan_card(config, size * 1e9) for size in memory.CARDS),
        disk=plan_disk(config),
    )


def _stages(config: RunConfig) -> Iterator[StagePlan]:
    hardware, rl, training = config.hardware, config.rl, flops_per_token(config.model)
    work: list[tuple[str, int, int, float]] = []
    for name in ("base", "mid", "sft"):
        train: TrainConfig = getattr(config, name)
        steps = train.steps or max(1, data.chat_tokens(train) // train.batch_tokens)
        work.append((name, steps, train.batch_tokens, training))
    if rl.steps:
        # every sample at its full length; sampling is one more forward pass, a third of training
        tokens = rl.problems_per_step * rl.samples_per_problem * rl.max_new_tokens
        work.append(("rl", rl.steps, tokens, training * 4 / 3))
    for name, steps, step_tokens, token_flops in work:
        flops = token_flops * steps * step_tokens
        seconds = flops / (hardware.devices * hardware.peak_flops * hardware.utilization)
        dollars = hardware.dollars_per_hour * seconds / 3600
        yield StagePlan(name, steps, step_tokens, flops, seconds, dollars)


def stage_step(config: RunConfig, stage: str = "base") -> memory.Step:
    """The step of base, mid or sft on one device; a run computes in bf16 on GPUs, else in fp32.

    With micro_rows "auto" it has as many rows as fit, and one where none does.
    """
    train: TrainConfig = getattr(config, stage)
    device_rows, platform = _rows_per_device(config, train), _platform(config.hardware)
    single = memory.Step(
        model=config.model,
        optim=config.optim_of(stage),
        rows=1,
        accumulation=device_rows,
        mesh=memory.mesh_of(config.mesh, config.hardware.devices),
        platform=platform,
        compute_bytes=config.hardware.compute_bytes,
        chunk_rows=config.compute.loss_chunk_rows,
        lean_relu2=config.compute.lean_relu2,
        fp8=config.compute.fp8,
        fused=platform == "gpu",
    )
    if isinstance(train.micro_rows, str):
        limit = room(config.hardware.memory_bytes)
        rows = max(1, memory.largest_rows(single, device_rows, limit))
    else:
        rows = min(train.micro_rows, device_rows)
    return memory.with_rows(single, rows, device_rows)


def _platform(hardware: HardwareConfig) -> str:
    """JAX's, by what it computes in and its name."""
    if hardware.compute_bytes == memory.WIDE:
        return "cpu"
    return "tpu" if "TPU" in hardware.name else "gpu"


def plan_card(config: RunConfig, memory_bytes: float) -> Card:
    """What the base model's `micro_rows` can be where devices have `memory_bytes`."""
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
    counts = count_params(config.model)
    total = counts["total"]
    optimizer = 2 * total - counts["matrices"]  # Muon has a number a weight, AdamW two
    text = data.plan_text(config)
    others = sum(amount for _, amount, _ in data.plan_downloads(config))
    chat_tokens = sum(data.chat_tokens(train) for train in (config.mid, config.sft))
    # one more of a stage whose optimizer the next one starts with
    checkpoints = CHECKPOINTS_KEPT + sum(config.starts_warm(stage) for stage in MODELS)
    return {
        "text": (text.download or text.characters) + others,
        "rows": (text.tokens + chat_tokens) * (2 if config.model.vocab_size <= 2**16 else 4),
        "checkpoints": checkpoints * MASTER_BYTES * (total + optimizer),
        "models": MODELS_KEPT * MASTER_BYTES * total,
    }


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs: sizes in bytes, times in seconds."""
    return {
        "format": FORMAT,
        "name": plan.config.name,
        "parameters": dict(plan.params),
        "flops_per_token": plan.flops_per_token,
        "seconds": plan.seconds,
        "dollars": plan.dollars,
        "stages": [{**asdict(stage), "tokens": stage.tokens} for stage in plan.stages],
        "evaluation": [asdict(part) for part in plan.evaluation],
        "memory": {**asdict(plan.memory), "peak": plan.memory.peak, "fits": plan.fits},
        "cards": [asdict(card) for card in plan.cards],
        "disk": dict(plan.disk),
    }


def render(plan: Plan) -> str:
    """The plan as text for a terminal."""
    hardware = plan.config.hardware
    head = (
        f"{plan.config.name}: {plan.params['total']:,} parameters, "
        f"{count(plan.stages[0].tokens)} tokens, {duration(plan.seconds)} "
        f"(${plan.dollars:,.0f}) of training on {hardware.devices} x {hardware.name}"
    )
    uses = ", ".join(f"{name} {size(value)}" for name, value in plan.disk.items())
    parts = (
        [head],
        _model_lines(plan),
        _data_lines(plan),
        _stage_lines(plan),
        _eval_lines(plan),
        _memory_lines(plan),
        _card_lines(plan),
        [f"Disk  {size(sum(plan.disk.values()))}: {uses}"],
    )
    return "\n\n".join("\n".join(lines) for lines in parts)


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
    amounts = [f"{size(text.download)} to download"] if text.download else []
    if text.tokens:
        passes = plan.stages[0].tokens / text.tokens
        amounts.append(
            f"about {count(text.characters)} characters, {count(text.tokens)} tokens; training "
            f"reads {passes:.2f} passes"
        )
    rows = [
        (name, size(amount) if amount else "your own", use)
        for name, amount, use in data.plan_downloads(config)
    ]
    generated = {name: getattr(config, name).conversations for name in ("mid", "sft")}
    counts = ", ".join(f"{number:,} in {stage}" for stage, number in generated.items() if number)
    rows += [("generated", "0 B", counts)] if counts else []
    return [
        f"Data  {text.source}",
        *(["  " + ", ".join(amounts)] if amounts else []),
        *(_notes(rows) if rows else ()),
    ]


def _costed(
    head: tuple[str, ...], rows: Iterable[tuple[str, ...]], parts: Sequence[StagePlan | EvalPlan]
) -> list[str]:
    """A table with the time and cost of each row, and of all together."""
    cells = [
        (*row, duration(part.seconds), f"${part.dollars:,.2f}")
        for row, part in zip(rows, parts, strict=True)
    ]
    seconds, dollars = (sum(getattr(part, n) for part in parts) for n in ("seconds", "dollars"))
    total = ("total", *[""] * (len(head) - 1), duration(seconds), f"${dollars:,.2f}")
    return table([(*head, "time", "cost"), *cells, total])


def _stage_lines(plan: Plan) -> list[str]:
    config, hardware, rl = plan.config, plan.config.hardware, plan.config.rl
    rows = (
        (s.name, f"{s.steps:,}", f"{s.step_tokens:,}", count(s.tokens), f"{s.flops:.3g}")
        for s in plan.stages
    )
    step = stage_step(config)
    return [
        "Training",
        *_costed(("stage", "steps", "tokens/step", "tokens", "FLOPs"), rows, plan.stages),
        f"  A step of base is {hardware.devices} devices x {step.rows} rows x "
        f"{config.model.sequence_len:,} tokens x {step.accumulation} accumulated.",
        f"  Time is FLOPs / (devices x {hardware.peak_flops:.3g} FLOP/s x "
        f"{hardware.utilization:.0%}), at ${hardware.dollars_per_hour:g} an hour. Not in it: "
        "downloads, compiling, evaluation,",
        "  and that sampling in rl is slower than training; its samples count at full length.",
        f"  RL runs: {rl.steps:,} steps on {rl.task}, then chat talks to its model. "
        "--set rl.steps=0 leaves it out."
        if rl.steps
        else "  RL is left out (rl.steps is 0): chat talks to the model of sft.",
    ]


def _eval_lines(plan: Plan) -> list[str]:
    rows = (
        (
            part.what,
            f"{part.each:,}" if part.each else "all",
            " ".join(part.models),
            count(part.read),
            count(part.decoded) if part.decoded else "",
        )
        for part in plan.evaluation
    )
    head = ("measured", "of each", "models", "tokens read", "decoded at most")
    return [
        "Evaluation, an estimate",
        *_costed(head, rows, plan.evaluation),
        "  Answers count at their full length; most end sooner. Decoding is estimated at "
        f"{DECODING:.1%} of the peak, measured",
        "  on one H100 with 64 rows; whole rows as training. Not in it: compiling, and running the "
        "programs of HumanEval.",
    ]


def _memory_lines(plan: Plan) -> list[str]:
    held, hardware, step = plan.memory, plan.config.hardware, stage_step(plan.config)
    lower = "lower base.micro_rows" if step.rows > 1 else "not even 1 row does"
    verdict = "" if plan.fits else f"  It does not fit: {lower}."
    mesh = f"data={step.mesh.data}, fsdp={step.mesh.fsdp}, tensor={step.mesh.tensor}"
    rows = [
        ("parameters", held.parameters, "fp32"),
        ("optimizer", held.optimizer, "fp32, shared out: AdamW 2 numbers a parameter, Muon 1"),
        ("batch", held.batch, ""),
        ("weights", held.weights, "copies that are computed with"),
        ("gradients", held.gradients, "while the loss is computed"),
        ("activations", held.activations, f"{step.rows} rows, {step.compute_bytes} bytes each"),
        ("logits", held.logits, "of one chunk of tokens, fp32"),
        ("or: update", held.update, "instead of these four: gradients and the optimizer's work"),
    ]
    return [
        f"Memory per device  {size(held.peak)} of {size(hardware.memory_bytes)} at the peak of a "
        f"step of base, {mesh}{verdict}",
        *_notes([(name, size(value), note) for name, value, note in rows]),
    ]


def _card_lines(plan: Plan) -> list[str]:
    rows = [("card", "base.micro_rows", "accumulated", "peak")]
    for card in plan.cards:
        fit = (str(card.rows), str(card.accumulation), size(card.peak))
        none = ("none", "", f"{size(card.peak)} with 1")
        rows.append((f"{card.memory_bytes / 1e9:g} GB", *(fit if card.rows else none)))
    return [
        f"Largest micro-batch of base by memory of a card, {memory.MARGIN:.0%} of it held back",
        *table(rows),
        f"  A run takes {1 - memory.MARGIN:.0%} of a GPU's memory, unless "
        "XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.",
    ]


def _notes(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """A table of names and values, with a remark after each."""
    lines = table([(name, value) for name, value, _ in rows])
    return [f"{line}  {note}".rstrip() for line, (_, _, note) in zip(lines, rows, strict=True)]
