"""The stage `eval`: every model of a run, in parts that are saved one by one.

RUN/eval/parts/MODEL-PART.json   what was measured, and the hash of what it depends on
RUN/eval/wanted.json             which of them the last evaluation is of
RUN/eval/core-base/              the same for CORE's tasks

A part that is there is not measured again: neither after an interruption, nor when settings change
that it does not depend on. Likewise CORE: a bundle that comes later, or another one, runs it alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxchat.config import loading
from jaxchat.config.schema import MODELS, NOWHERE, RunConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.download import eval_bundle
from jaxchat.data.download.web import WebError
from jaxchat.data.shards import text_hash
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals import humaneval
from jaxchat.evals.bpb import TextRows, TextSplit, bits_of_text
from jaxchat.evals.chat import (
    MAX_TOKENS,
    Sampling,
    by_letters,
    evaluate_task,
    held_out_problems,
    sampled_right,
    sampler,
)
from jaxchat.evals.core.bundle import Bundle, read_bundle
from jaxchat.evals.core.evaluate import evaluate_saved
from jaxchat.evals.model import EvalModel
from jaxchat.evals.saved import PARTS, TASK, Found, Part, Parts, core_folder, record
from jaxchat.evals.scores import mean_reward, pass_rates
from jaxchat.inference.service import Service
from jaxchat.paths import offline_by, sha256_text, sweep
from jaxchat.runs.inputs import home_of, hub_of, text_folder
from jaxchat.runs.opening import eval_model, load_model, make_engine
from jaxchat.runs.report.by_hand import cores
from jaxchat.runs.report.metrics import core_record
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import Context, read_done, settings_hash
from jaxchat.runs.stages import BY_NAME
from jaxchat.tasks import Task
from jaxchat.tasks.dataset import FixedTask
from jaxchat.tools.sandbox import levels

LEFT_OUT = "CORE is left out"
ADD = "jaxchat eval core --download adds it later."


def run_eval(context: Context) -> dict[str, Any]:
    """Evaluates every model; what is there of the same weights, data and settings is reused."""
    context.await_programs("eval")
    bench = Bench(context)
    sweep(context.folder("eval") / PARTS)  # of a process that was killed while it wrote
    parts = Parts(
        context.folder("eval") / PARTS,
        {stage: context.done[stage]["results"]["artifact"] for stage in bench.stages},
        (bench.tokenizer.hash, loading.to_json(context.config.model)),
    )
    everything = {stage: parts_of(bench, stage) for stage in bench.stages}
    settings = settings_hash(BY_NAME["eval"], context.config)
    parts.want((part for each in everything.values() for part in each), settings)
    models: dict[str, Any] = {}
    seconds = 0.0
    for stage, wanted in everything.items():
        found = {part.name: saved for part in wanted if (saved := parts.read(part)) is not None}
        if found:
            print(f"{stage}: there already, not done again: {', '.join(found)}", flush=True)
        for part in wanted:
            if part.name not in found:
                began = time.monotonic()
                result = part.measure()
                found[part.name] = parts.write(part, result, time.monotonic() - began)
        seconds += sum(saved["seconds"] for saved in found.values())
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

    def model(self, stage: str) -> EvalModel:
        """A model as whole rows are computed with it."""
        return eval_model(self.context, stage, lambda: self.params(stage))

    @cached_property
    def read(self) -> inputs.Inputs:
        """The files that the run reads."""
        return inputs.read_inputs(self.context.folder("data"))

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks that models answer, but for programs where they cannot be sandboxed."""
        names = list(self.config.eval.tasks)
        if "humaneval" in names and levels.detect().name == "none":
            print("humaneval is left out: programs cannot be sandboxed here; see jaxchat doctor")
            names.remove("humaneval")
        return self._tasks_of(names)

    @cached_property
    def rewarded(self) -> Task:
        """The task of reinforcement learning."""
        name = self.config.rl.task
        return self.tasks[name] if name in self.tasks else self._tasks_of([name])[name]

    def _tasks_of(self, names: list[str]) -> dict[str, Task]:
        return prepare.run_tasks(names, self.config.seed, self.read, self.tokenizer)


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
        title = f"evaluating {stage}, {split} text"
        bits = bits_of_text(bench.model(stage), rows, count, title)
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

    data = inputs.data_of(name, bench.read, bench.config.seed)
    said = "by letters" if by_letters(task) else sampling  # a letter has no length
    return Part(stage, f"{TASK}{name}", (count, said, *data), measure)


def _reward(bench: Bench, stage: str) -> Part:
    """The rewards of held-out problems, sampled as reinforcement learning samples."""
    config, rl = bench.config, bench.config.rl
    task, samples_each = bench.rewarded, config.eval.reward_samples
    count = held_out_problems(task, config.eval.rewarded)
    sampling = Sampling(rl.max_new_tokens, samples_each, 1.0, config.seed, rl.top_k)

    def measure() -> Found:
        right = sampled_right(
            bench.engine(stage), bench.tokenizer, task, problems=count, sampling=sampling,
            title=f"rewards of {stage}",
        )  # fmt: skip
        rates = pass_rates(right, samples_each)
        return mean_reward(right, samples_each).to_json() | {
            f"pass@{k}": rate for k, rate in rates.items()
        }

    depends = (rl.task, count, samples_each, rl.max_new_tokens, rl.top_k, config.seed)
    return Part(
        stage, "reward", (*depends, *inputs.data_of(rl.task, bench.read, config.seed)), measure
    )


def _samples(bench: Bench, stage: str) -> Part:
    ask, prompts = sampler(stage)

    def measure() -> Found:
        return {"samples": ask(bench.engine(stage), bench.tokenizer, prompts)}

    return Part(stage, "samples", (*prompts, MAX_TOKENS), measure)


def core_of(bench: Bench, stage: str) -> dict[str, Any]:
    """`core`, as a record of the base model has it; empty where there is no bundle.

    What was measured of these weights on this bundle, also by `jaxchat eval core`, is not measured
    again.
    """
    context, config = bench.context, bench.config
    bundle = fetch_bundle(context) if stage == "base" else None
    if bundle is None:
        return {}
    result, _ = evaluate_saved(
        core_folder(context.root, stage), bench.model(stage), bundle,
        max_problems=config.eval.core_examples or None,
    )  # fmt: skip
    seconds = sum(task.seconds for task in result.tasks)  # of earlier sessions, too
    return {"core": core_record(result.to_json()) | {"bundle": bundle.hash, "seconds": seconds}}


def is_wanted(config: RunConfig) -> bool:
    """Whether a run's base model is to be evaluated on CORE: of all runs on a dataset's text."""
    asked = bool(config.eval.bundle) or config.data.is_dataset
    return asked and not config.leaves_out("base")


def find_bundle(context: Context) -> Bundle | None:
    """The bundle of CORE's tasks that is here, if any.

    Raises ArtifactError where the home's is not as it first was, and ConfigError where fewer
    examples a task are to be measured than a prompt shows.
    """
    config, root = context.config, home_of(context.root)
    if not is_wanted(config):
        return None
    if config.eval.bundle:
        bundle = _own_bundle(config)
    elif eval_bundle.bundle_folder(root).exists():
        bundle = read_bundle(eval_bundle.check_bundle(root))
    else:
        return None
    shots = max(task.shots for task in bundle.tasks)
    stages = {name: getattr(config, name) for name in ("base", "mid", "sft")}
    limits = {"eval.core_examples": config.eval.core_examples}
    limits |= {f"{n}.core_examples": t.core_examples for n, t in stages.items() if t.core_every}
    for name, limit in limits.items():
        if 0 < limit <= shots:
            raise ConfigError(
                f"{name} is {limit}, and CORE shows up to {shots} solved examples before each "
                f"question; set it to more than {shots}, or to 0 for all."
            )
    return bundle


def _own_bundle(config: RunConfig) -> Bundle:
    """The bundle that `eval.bundle` names."""
    folder = Path(config.eval.bundle).expanduser()
    try:
        return read_bundle(folder)
    except ArtifactError as error:
        wrong = "does not exist" if not folder.exists() else f"cannot be used: {error}"
        raise ArtifactError(
            f"eval.bundle is {config.eval.bundle}, which {wrong.rstrip('.')}; set it to the folder "
            "of CORE's tasks, or leave it out for that of the home."
        ) from error


def fetch_bundle(context: Context) -> Bundle | None:
    """As `find_bundle`, but downloads a missing one; prints why where that is impossible."""
    found = find_bundle(context)
    if found is not None or not is_wanted(context.config):
        return found
    hub, url = hub_of(context), context.config.eval.bundle_url
    if hub.offline or url == NOWHERE:
        why = f"{offline_by()} forbids fetching it" if hub.offline else "eval.bundle_url is none"
        folder = eval_bundle.bundle_folder(home_of(context.root))
        _leave_out(context, f": there is no {folder}, and {why}; {ADD}")
        return None
    try:
        eval_bundle.fetch_bundle(hub.root, eval_bundle.address(hub, url), hub.web)
    except WebError as error:
        _leave_out(context, f", and the run continues without it: {error} {ADD}")
        return None
    return find_bundle(context)


def _leave_out(context: Context, why: str) -> None:
    """Says so, once a process, unless the report already has CORE of these weights."""
    base = read_done(context.root, "base")
    if base is not None and cores(context.root, "base", str(base["results"]["artifact"])):
        return
    if LEFT_OUT not in context.said:
        print(f"{LEFT_OUT}{why}", flush=True)
    context.said.add(LEFT_OUT)


def is_outdated(context: Context) -> bool:
    """Whether a complete evaluation was not on the bundle that there is now.

    A bundle that is gone does not count: what was measured on it stays.
    """
    own, done = context.config.eval.bundle, read_done(context.root, "eval")
    if done is None or (own and not Path(own).expanduser().exists()):
        return False
    bundle = find_bundle(context)
    if bundle is None:
        return False
    base = done["results"].get("models", {}).get("base", {})
    return bool(base.get("core", {}).get("bundle") != bundle.hash)
