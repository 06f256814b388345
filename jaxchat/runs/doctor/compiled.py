"""`jaxchat doctor --compile`: a tier's programs on devices that are not here, by what they do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxchat.config import memory
from jaxchat.config.derive import count_params, flops_per_token, windows
from jaxchat.config.schema import MODELS, ModelConfig, RunConfig
from jaxchat.errors import ConfigError
from jaxchat.inference import jitted
from jaxchat.model.backend import bucket
from jaxchat.model.kv_cache import slots_of, whole_blocks
from jaxchat.runs.plan import plan
from jaxchat.runs.plan.evaluation import prompt_tokens
from jaxchat.train.compiled.engine import STEPS, EngineShape, compile_decode, compile_prefill
from jaxchat.train.compiled.program import (
    LIBRARY_PRODUCTS,
    Program,
    StepShape,
    compile_step,
    step_shape,
)
from jaxchat.train.compiled.roofline import Roofline, bound, roofline, small_kernels
from jaxchat.train.compiled.targets import TARGETS, USERS, Target
from jaxchat.train.rollouts import MIN_ROW

FORMAT = "jaxchat-compiled-1"
STEP, PREFILL, DECODE = "step", "prefill", "decode"


@dataclass(frozen=True)
class Work:
    """A program to compile, and the stages that run it."""

    what: str  # STEP, PREFILL or DECODE
    stages: tuple[str, ...]
    shape: StepShape | EngineShape


@dataclass(frozen=True)
class Compiled:
    """A program on a kind of device."""

    tier: str
    work: Work
    kind: str  # of TARGETS
    devices: int
    program: Program
    predicted: Mapping[str, int]  # bytes by use before it was compiled, and "peak"
    time: Roofline | None  # None for an engine's programs on a TPU
    mfu: float
    others: int = 0  # bytes that the stage holds on the device beside the program's

    @property
    def stage(self) -> str:
        """The first stage that runs it."""
        return self.work.stages[0]

    @property
    def target(self) -> Target:
        """The kind of device."""
        return TARGETS[self.kind]

    @property
    def memory(self) -> int:
        """Bytes of a device at most, by XLA's plan."""
        return self.program.memory + self.others

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.memory <= self.target.usable

    @property
    def steps(self) -> int:
        """Steps that one run of the program makes."""
        return STEPS if self.work.what == DECODE else 1

    @property
    def launches(self) -> float:
        """Kernels of a step, all but collectives."""
        return self.program.counts.launches / self.steps

    def time_of(self, program: Program) -> Roofline | None:
        """The predicted time of a step in one of the program's forms."""
        if self.work.what == STEP:
            return roofline(program.counts, self.target)
        if self.target.platform != "gpu":
            return None
        return small_kernels(program.kernels, self.target, self.steps)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        program = self.program
        return {
            "format": FORMAT,
            "tier": self.tier, "stage": self.stage, "kind": self.kind, "devices": self.devices,
            "program": self.work.what, "stages": list(self.work.stages),
            "shape": asdict(self.work.shape), "steps": self.steps,
            "fits": self.fits, "usable_bytes": int(self.target.usable),
            **_form(program, self.time),
            "predicted_bytes": dict(self.predicted), "other_bytes": self.others,
            "held_bytes": dict(program.held), "kernels_a_step": self.launches,
            "ceilings": self.target.source, "mfu": self.mfu,
            "bound_seconds": bound(program.counts, self.target) / self.steps,
            "beside": program.beside and _form(program.beside, self.time_of(program.beside)),
        }  # fmt: skip


def _form(program: Program, time: Roofline | None) -> dict[str, Any]:
    return {
        "memory_bytes": program.memory, "argument_bytes": program.arguments,
        "temporary_bytes": program.temporaries, "compile_seconds": program.seconds,
        "counts": program.counts.to_json(),
        "seconds": time and {**asdict(time), "step": time.seconds},
    }  # fmt: skip


def say(line: str) -> None:
    """Progress, for a terminal."""
    print(line, file=sys.stderr, flush=True)


def all_to_json(found: Sequence[Compiled]) -> dict[str, Any]:
    """For programs: the first one's keys, and all of them."""
    return {
        **found[0].to_json(),
        "all_fit": all(one.fits for one in found),
        "programs": [one.to_json() for one in found],
    }


def compile_all(
    config: RunConfig,
    tier: str,
    kind: str,
    stages: Collection[str] = (),
    *,
    both_forms: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> tuple[Compiled, ...]:
    """Compiles what a tier runs on the kind, one after the other; `stages` (none: all) choose.

    `both_forms`: the first step in XLA's other form, too, which shows what it changes in all. See
    `train.compiled.program` for what it raises, and ConfigError for an unknown stage.
    """
    target = TARGETS[kind]
    if unknown := set(stages).difference(USERS):
        raise ConfigError(
            f"nothing of {min(unknown)!r} is compiled; choose among {', '.join(USERS)}."
        )
    config, found = settled(config, target), []
    works = list(plan_works(config, stages or (("base",) if target.topology else ())))
    if not works:
        raise ConfigError(
            f"the tier {tier} has no program of {', '.join(stages)}: its settings leave that out."
        )
    for number, work in enumerate(works, 1):
        names = ", ".join(work.stages)
        say(f"compiling {number} of {len(works)}: {work.what} of {names} ...")
        found.append(_compile(config, tier, kind, work, both_forms=both_forms and number == 1))
    return tuple(found)


def compile_tier(config: RunConfig, tier: str, kind: str, stage: str = "base") -> Compiled:
    """Compiles a stage's step; see `train.compiled.program` for what it raises."""
    config = settled(config, TARGETS[kind])
    return _compile(config, tier, kind, Work(STEP, (stage,), _shape(config, stage)))


def settled(config: RunConfig, target: Target) -> RunConfig:
    """The run on the target, with numbers for all that follows from its memory."""
    hardware = replace(
        config.hardware, name=target.name, peak_flops=target.peak, memory_bytes=target.memory,
        compute_bytes=memory.WIDE // 2,
    )  # fmt: skip
    config = replace(config, hardware=hardware)
    for stage in ("base", "mid", "sft"):
        rows = plan.stage_step(config, stage).rows
        config = replace(config, **{stage: replace(getattr(config, stage), micro_rows=rows)})
    if isinstance(config.rl.micro_rows, str):
        single = _predicted_step(config, "rl", step_shape(config, "rl"))
        limit = target.usable - sum(_engine_bytes(config, rollout_shape(config)).values())
        rows = max(1, memory.largest_rows(single, single.accumulation, limit))
        config = replace(config, rl=replace(config.rl, micro_rows=rows))
    return config


def plan_works(config: RunConfig, wanted: Collection[str] = ()) -> Iterator[Work]:
    """What a settled run's stages execute, each program once."""
    chosen = [
        stage for stage in MODELS if config.imported.trains(stage) and not config.leaves_out(stage)
    ]
    steps: dict[Any, list[str]] = {}
    for stage in (stage for stage in chosen if not wanted or stage in wanted):
        # Rates, schedules and clipping are no work that counts; Muon's decay is.
        key = (_shape(config, stage), config.optim_of(stage).weight_decay > 0)
        steps.setdefault(key, []).append(stage)
    for (shape, _), stages in steps.items():
        yield Work(STEP, tuple(stages), shape)
    rollouts, answers = rollout_shape(config), answer_shape(config)
    engines = {"rl": rollouts, "eval": answers, "chat": replace(answers, slots=1)}
    if "rl" not in chosen:
        del engines["rl"]
    users = [user for user in engines if not wanted or user in wanted]
    if users:
        yield Work(PREFILL, tuple(users), rollouts)
    for shape in dict.fromkeys(engines[user] for user in users):
        yield Work(DECODE, tuple(user for user in users if engines[user] == shape), shape)


def _shape(config: RunConfig, stage: str) -> StepShape:
    if stage != "rl":
        return step_shape(config, stage)
    longest = prompt_tokens(config.rl.task) + config.rl.max_new_tokens - 1
    return step_shape(config, stage, bucket(longest, MIN_ROW, config.model.sequence_len))


def rollout_shape(config: RunConfig) -> EngineShape:
    """What samples in RL."""
    return _engine_shape(config, config.rl.max_new_tokens, truncate=config.rl.top_k > 0)


def answer_shape(config: RunConfig) -> EngineShape:
    """What answers in the evaluation, the likeliest token each time."""
    return _engine_shape(config, config.eval.max_new_tokens, truncate=False)


def _engine_shape(config: RunConfig, answer: int, *, truncate: bool) -> EngineShape:
    """For prompts of RL's task."""
    prompt, longest = prompt_tokens(config.rl.task), config.model.sequence_len
    return EngineShape(
        slots=config.eval.slots,
        positions=bucket(prompt + answer + STEPS, jitted.MIN_CACHE, whole_blocks(longest)),
        prompt=bucket(prompt, jitted.MIN_PROMPT, longest),
        truncate=truncate,
    )


def _compile(
    config: RunConfig, tier: str, kind: str, work: Work, *, both_forms: bool = False
) -> Compiled:
    target, shape = TARGETS[kind], work.shape
    if isinstance(shape, StepShape):
        beside = LIBRARY_PRODUCTS if both_forms and target.platform == "gpu" else None
        program = compile_step(config, target, work.stages[0], tokens=shape.tokens, beside=beside)
        devices, predicted = config.hardware.devices, _predicted(config, work.stages[0], shape)
        others = 0
        if "rl" in work.stages:  # whose engine stays on the device
            others = sum(_engine_bytes(config, rollout_shape(config)).values())
    else:
        make = compile_prefill if work.what == PREFILL else compile_decode
        program, devices = make(config, target, shape), 1
        predicted = _engine_bytes(config, shape)
        predicted["peak"] = sum(predicted.values())
        others = max(0, predicted["peak"] - program.arguments)  # what a prefill does not read
    found = Compiled(tier, work, kind, devices, program, predicted, None, 0.0, others=others)
    time = found.time_of(program)
    flops = model_flops(config.model, work) / devices
    return replace(found, time=time, mfu=time.mfu(flops, target) if time else 0.0)


def model_flops(model: ModelConfig, work: Work) -> float:
    """FLOPs of one step of a program on all its devices, as `flops_per_token` counts them."""
    shape = work.shape
    if isinstance(shape, StepShape):
        tokens, seen, share = shape.accumulation * shape.rows * shape.tokens, shape.tokens, 1.0
    else:  # a forward pass
        reads = work.what == PREFILL
        tokens, share = (shape.prompt if reads else shape.slots), 1 / 3
        seen = shape.prompt if reads else shape.positions
    unseen = sum(max(0, window - seen) for window in windows(model))
    each = flops_per_token(model) - 12 * model.n_head * model.head_dim * unseen
    return tokens * each * share


def _predicted(config: RunConfig, stage: str, shape: StepShape) -> dict[str, int]:
    found = memory.predict(_predicted_step(config, stage, shape))
    return {**asdict(found), "peak": found.peak}


def _predicted_step(config: RunConfig, stage: str, shape: StepShape) -> memory.Step:
    like = plan.stage_step(config)
    return replace(
        like,
        model=replace(config.model, sequence_len=shape.tokens), optim=config.optim_of(stage),
        rows=shape.device_rows, accumulation=shape.accumulation,
    )  # fmt: skip


def _engine_bytes(config: RunConfig, shape: EngineShape) -> dict[str, int]:
    """What an engine holds on its device."""
    model, width = config.model, config.hardware.compute_bytes
    positions = sum(slots_of(model, shape.positions))
    return {
        "parameters": width * count_params(model)["total"],
        "cache": width * shape.slots * 2 * positions * model.n_kv_head * model.head_dim,
    }
