"""The stage `eval`: every model of a run, in parts that are kept one by one (layer 4).

RUN/eval/parts/MODEL-PART.json   what was measured, and the hash of what it depends on
RUN/eval/wanted.json             which of them the last evaluation is of
RUN/eval/core-base/              the same for CORE's tasks

A part that is there is not measured again: neither after an interruption, nor when settings change
that it does not depend on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from jaxchat.config import loading
from jaxchat.config.schema import MODELS, MeshConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.shards import text_hash
from jaxchat.evals import humaneval
from jaxchat.evals.bpb import TextRows, TextSplit, bits_of_text
from jaxchat.evals.chat import (
    COMPLETIONS,
    MAX_TOKENS,
    QUESTIONS,
    Sampling,
    by_letters,
    chat_samples,
    evaluate_task,
    held_out_problems,
    sampled_right,
    text_samples,
)
from jaxchat.evals.saved import PARTS, TASK, Found, Part, Parts, record
from jaxchat.evals.scores import mean_reward, pass_rates
from jaxchat.inference.service import Service
from jaxchat.model.backend import Compute
from jaxchat.model.capabilities import evaluation_compute
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.paths import sha256_text, sweep
from jaxchat.runs import core_stage
from jaxchat.runs.inputs import text_folder, tokenizer_of
from jaxchat.runs.opening import load_model, make_engine
from jaxchat.runs.runner import Context, settings_hash
from jaxchat.runs.stage_inputs import INPUTS
from jaxchat.tasks import Task
from jaxchat.tasks.dataset import FixedTask
from jaxchat.tools.sandbox import levels


def run_eval(context: Context) -> dict[str, Any]:
    """Evaluates every model; what is there of the same weights, data and settings is kept."""
    bench = Bench(context)
    sweep(context.folder("eval") / PARTS)  # of a process that was killed while it wrote
    parts = Parts(
        context.folder("eval") / PARTS,
        {stage: context.done[stage]["results"]["artifact"] for stage in bench.stages},
        (tokenizer_of(context).hash, loading.to_json(context.config.model)),
    )
    everything = {stage: parts_of(bench, stage) for stage in bench.stages}
    settings = settings_hash(INPUTS["eval"], context.config)
    parts.want((part for each in everything.values() for part in each), settings)
    models: dict[str, Any] = {}
    seconds = 0.0
    for stage, wanted in everything.items():
        found = {part.name: told for part in wanted if (told := parts.read(part)) is not None}
        if found:
            print(f"{stage}: there already, not done again: {', '.join(found)}", flush=True)
        for part in wanted:
            if part.name not in found:
                began = time.monotonic()
                result = part.measure()
                found[part.name] = parts.write(part, result, time.monotonic() - began)
        seconds += sum(told["seconds"] for told in found.values())
        models[stage] = record({part.name: found[part.name]["result"] for part in wanted})
        models[stage] |= core_of(bench, stage)
        seconds += models[stage].get("core", {}).get("seconds", 0.0)
    return {
        "artifact": sha256_text(json.dumps(models)),
        "models": models,
        "seconds": seconds,  # of earlier sessions, too
    }


class Bench:
    """The models of a run and what they are measured on; what is not needed is not loaded."""

    def __init__(self, context: Context) -> None:
        self.context, self.config = context, context.config
        self.tokenizer = tokenizer_of(context)
        self.stages = [name for name in MODELS if not context.config.leaves_out(name)]
        self._stage, self._params = "", None
        self._engine: Service | None = None

    def params(self, stage: str) -> Any:
        """The weights of a model, on the first device; those of one model are held at a time."""
        if self._stage != stage:
            self._params = load_model(self.context.root, stage, self.config.model)
            self._stage = stage
            if self._engine is not None:
                self._engine.set_params(self._params)
        return self._params

    def engine(self, stage: str) -> Service:
        """What decodes with the weights of a model."""
        params = self.params(stage)
        if self._engine is None:
            self._engine = make_engine(self.context, params)
        return self._engine

    def spread(self, stage: str) -> Any:
        """The weights of a model whole on each device of `mesh`."""
        params = self.params(stage)
        return put(params, param_shardings(self.mesh, params))

    @cached_property
    def mesh(self) -> Mesh:
        """All devices of this process, rows split over them."""
        return make_mesh(MeshConfig(), jax.local_devices())

    @cached_property
    def compute(self) -> Compute:
        """How whole rows are computed."""
        return evaluation_compute(self.config.compute, self.config.model)

    @cached_property
    def read(self) -> inputs.Inputs:
        """The files that the run reads."""
        return inputs.read_inputs(self.context.folder("data"))

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks that models answer, but for programs where they cannot be locked in."""
        names = list(self.config.eval.tasks)
        if "humaneval" in names and levels.detect().name == "none":
            print("humaneval is left out: programs cannot be locked in here; see jaxchat doctor")
            names.remove("humaneval")
        return self._tasks_of(names)

    @cached_property
    def rewarded(self) -> Task:
        """The task of reinforcement learning."""
        name = self.config.rl.task
        return self.tasks[name] if name in self.tasks else self._tasks_of([name])[name]

    def _tasks_of(self, names: list[str]) -> dict[str, Task]:
        return prepare.run_tasks(names, self.config.seed, self.read, self.tokenizer)

    def data_of(self, name: str) -> tuple[object, ...]:
        """What the problems of a task depend on."""
        return inputs.data_of(name, self.read, self.config.seed)


def parts_of(bench: Bench, stage: str) -> list[Part]:
    """The parts of a model's evaluation, in the order in which they are measured."""
    parts = [_bits(bench, stage, "heldout")]
    if stage == "base" and bench.config.imported.trains("base"):
        parts.append(_bits(bench, stage, "train"))
    if stage in bench.config.eval.models:
        parts += [_task(bench, stage, name, task) for name, task in bench.tasks.items()]
    if stage in ("sft", "rl") and bench.config.rl.steps:
        parts.append(_reward(bench, stage))
    return [*parts, _samples(bench, stage)]


def _bits(bench: Bench, stage: str, split: TextSplit) -> Part:
    config, context = bench.config, bench.context
    row_tokens = config.model.sequence_len
    limit = -(-config.eval.text_tokens // row_tokens) or config.base.eval_rows
    text = text_hash(bench.read, bench.tokenizer, row_tokens + 1)

    def measure() -> Found:
        rows = TextRows(text_folder(context), bench.tokenizer.hash, split, config.seed)
        count = min(limit, len(rows))
        bits = bits_of_text(
            bench.spread(stage), rows, count, token_bytes=bench.tokenizer.token_bytes,
            model=config.model, compute=bench.compute, mesh=bench.mesh,
            title=f"evaluating {stage}, {split} text",
        )  # fmt: skip
        return {"bits_per_byte": bits, "tokens": count * row_tokens}

    order = config.seed if split == "train" else ""
    return Part(stage, f"bits-{split}", (text, limit, order), measure)


def _task(bench: Bench, stage: str, name: str, task: Task) -> Part:
    settings = bench.config.eval
    asked = settings.problems if isinstance(task, FixedTask) else settings.generated
    count = held_out_problems(task, asked)
    sampling = Sampling(settings.max_new_tokens)

    def measure() -> Found:
        judge = humaneval.judge() if name == "humaneval" else None
        return evaluate_task(
            bench.engine(stage), bench.tokenizer, task, problems=count, sampling=sampling,
            title=f"evaluating {stage}, {name}", judge=judge,
        ).to_json()  # fmt: skip

    said = "by letters" if by_letters(task) else sampling  # a letter has no length
    return Part(stage, f"{TASK}{name}", (count, said, *bench.data_of(name)), measure)


def _reward(bench: Bench, stage: str) -> Part:
    """The rewards of held-out problems, sampled as reinforcement learning samples."""
    config = bench.config
    task, samples_each = bench.rewarded, config.eval.reward_samples
    count = held_out_problems(task, config.eval.rewarded)
    limit = config.rl.max_new_tokens
    sampling = Sampling(limit, samples_each, 1.0, config.seed, config.rl.top_k)

    def measure() -> Found:
        right = sampled_right(
            bench.engine(stage), bench.tokenizer, task, problems=count, sampling=sampling,
            title=f"rewards of {stage}",
        )  # fmt: skip
        rates = pass_rates(right, samples_each)
        return mean_reward(right, samples_each).to_json() | {
            f"pass@{k}": rate for k, rate in rates.items()
        }

    depends = (config.rl.task, count, samples_each, limit, config.rl.top_k, config.seed)
    return Part(stage, "reward", (*depends, *bench.data_of(config.rl.task)), measure)


def _samples(bench: Bench, stage: str) -> Part:
    base = stage == "base"
    prompts = COMPLETIONS if base else QUESTIONS
    ask = text_samples if base else chat_samples

    def measure() -> Found:
        return {"samples": ask(bench.engine(stage), bench.tokenizer, prompts)}

    return Part(stage, "samples", (*prompts, MAX_TOKENS), measure)


def core_of(bench: Bench, stage: str) -> dict[str, Any]:
    """CORE of the base model, where there is a bundle, as a record has it."""
    if stage != "base":
        return {}
    core = core_stage.evaluate_base(
        bench.context, lambda: bench.spread(stage), mesh=bench.mesh, compute=bench.compute
    )
    return {} if core is None else {"core": core}
