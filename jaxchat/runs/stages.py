"""The stages of a run, from text to report: what `run_speedrun.py` lists (layer 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxchat.checkpoints.save import remove_checkpoints, save_params
from jaxchat.config.machine import cores
from jaxchat.config.schema import MODELS, ModelConfig, RunConfig, TrainConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.chat import build_chat_rows
from jaxchat.data.inputs import own_files_changed
from jaxchat.data.loader import RowSource
from jaxchat.data.shards import delete_other_rows, prepare_text, text_hash
from jaxchat.errors import ConfigError
from jaxchat.evals import compression
from jaxchat.evals.compression import fetch_vocabularies, vocabulary_folder
from jaxchat.inference.multihost import MultiHostEngine
from jaxchat.model import gpt
from jaxchat.model.backend import backend
from jaxchat.model.capabilities import inference_compute
from jaxchat.parallel.mesh import gathered, make_mesh
from jaxchat.paths import remove, sha256_text
from jaxchat.runs import core_stage
from jaxchat.runs.eval_stage import run_eval
from jaxchat.runs.inputs import home_of, hub_of, text_folder, text_of, tokenizer_in, tokenizer_of
from jaxchat.runs.opening import load_model, make_engine
from jaxchat.runs.probes import probe_of
from jaxchat.runs.report import write_report
from jaxchat.runs.runner import Context, Stage
from jaxchat.runs.stage_inputs import INPUTS
from jaxchat.tools.sandbox import levels
from jaxchat.train.grpo import RLJob, train_rl
from jaxchat.train.loop import FitJob, PreviousStage, fit
from jaxchat.train.profiling import request
from jaxchat.train.profiling.capture import Capture


def mesh_of(context: Context) -> Mesh:
    """The run's mesh over all devices."""
    return make_mesh(context.config.mesh)


def keep_model(context: Context, stage: str, params: Any) -> str:
    """Writes the weights that a stage made, by process 0, and returns their hash.

    All processes must call this; afterwards none of them needs the stage's checkpoints.
    """
    whole = gathered(params)  # by all
    if not context.group.leads:
        return str(context.group.broadcast())
    digest = save_params(context.folder(stage) / "model", whole, {"stage": stage})
    return str(context.group.broadcast(digest))


def capture_of(context: Context, stage: str) -> Capture | None:
    """What `--profile` asks to record of a training stage."""
    wanted = request.for_stage(context.profiles, stage)
    if wanted is None:
        return None
    return Capture(wanted, stage, request.folder(context.root, stage), context.config.model)


def run_data(context: Context) -> dict[str, Any]:
    """Finds the text and the conversations, and fetches what is needed first."""
    hub = hub_of(context)
    core_stage.find_bundle(context)  # what is wrong with it is said before anything is fetched
    told = inputs.gather(context.config, context.folder("data"), hub)
    core_stage.fetch(context)
    if context.config.data.is_dataset:
        fetch_vocabularies(hub, context.config.eval.vocabularies_url)
    return told


def run_tokenizer(context: Context) -> dict[str, Any]:
    """Trains the tokenizer, and measures how it compresses."""
    read = inputs.read_inputs(context.folder("data"))
    tokenizer_in.cache_clear()
    results = prepare.train_tokenizer(context.config, read, context.folder("tokenizer"))
    peers = vocabulary_folder(home_of(context.root))
    measured = compression.survey({context.config.name: tokenizer_of(context)}, folder=peers)
    return results | {"compression": [result.to_json() for result in measured]}


def run_rows(context: Context) -> dict[str, Any]:
    """Renders and packs conversations; the first rows of text, or all where they are few."""
    config, tokenizer, folder = context.config, tokenizer_of(context), context.folder("rows")
    read = inputs.read_inputs(context.folder("data"))
    told: dict[str, Any] = {}
    if config.data.source == "machine":
        prepared = prepare_text(
            config, read, tokenizer, text_folder(context), hub_of(context),
            workers=cores(),
        )  # fmt: skip
        told = {
            "base_train": text_counts(prepared.training.rows, config.model),
            "base_heldout": text_counts(prepared.held_out.rows, config.model),
        }
    delete_other_rows(text_folder(context))
    rows = text_of(context)
    if not len(rows.held_out):
        raise ConfigError(no_held_out(config, read))
    if not told:
        told = {"base_heldout": text_counts(len(rows.held_out), config.model)}
    chat = build_chat_rows(config, read, tokenizer, rows.by_split, folder)
    if config.imported.trains("base"):
        rows.train.take(np.arange(1), config.seed)  # waits until training can begin
    else:
        context.close()  # nobody reads further shards
    digest = text_hash(read, tokenizer, config.model.sequence_len + 1)
    parts = {"text": digest, **chat.pop("parts")}
    return {**told, **chat, "parts": parts, "artifact": sha256_text(*parts.values())}


def no_held_out(config: RunConfig, read: inputs.Inputs) -> str:
    """What to do where the text that is held out fills no row."""
    more = {
        "machine": f"raise data.max_chars (it is {config.data.max_chars})",
        "folder": "put more text at the end of the folder, by name",
    }.get(config.data.source, "name another shard with data.held_out_shard")
    return (
        f"the held-out text, {read.text[-1].name}, does not fill one row of "
        f"{config.model.sequence_len + 1} tokens; {more}, or lower model.sequence_len."
    )


def text_counts(rows: int, model: ModelConfig) -> dict[str, Any]:
    """What the report tells of rows of text."""
    tokens = rows * (model.sequence_len + 1)
    return {"rows": rows, "tokens": tokens, "trained_tokens": tokens}


def _train(context: Context, stage: str, train: TrainConfig, source: str | None) -> dict[str, Any]:
    config, tokenizer = context.config, tokenizer_of(context)
    rows, folder = context.folder("rows"), context.folder(stage)
    job_rows: Any
    if source is None:
        params = gpt.init_params(jax.random.key(config.seed), config.model)
        text = text_of(context)
        job_rows = text.train, text.held_out
    else:
        params = load_model(context.root, source, config.model)
        job_rows = (
            RowSource(rows / f"{stage}_train", tokenizer.hash),
            RowSource(rows / f"{stage}_heldout", tokenizer.hash),
        )
    mesh, dtype = mesh_of(context), backend().dtype
    job = FitJob(
        title=stage,
        folder=folder,
        model=config.model,
        optim=config.optim_of(stage),
        train=train,
        rows=job_rows[0],
        held_out=job_rows[1],
        token_bytes=tokenizer.token_bytes,
        mesh=mesh,
        seed=config.seed,
        dtype=dtype,
        compute=config.compute,
        profile=capture_of(context, stage),
        trackers=config.track.trackers,
        probe=probe_of(context, stage, train, mesh, dtype),
        before=optimizer_before(context, stage),
    )
    result = fit(job, params)
    digest = keep_model(context, stage, result.params)
    if context.group.leads and not train.keep_every:
        remove_checkpoints(folder / "checkpoints", last=not config.starts_warm(next_stage(stage)))
    return {
        "artifact": digest,
        **({"warm_start": job.before is not None} if config.starts_warm(stage) else {}),
        "seconds": result.seconds,
        "steps": result.steps,
        "tokens": result.tokens,
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
    }


def next_stage(stage: str) -> str:
    """The stage of MODELS after another one; the last has none, "rl" stands for it."""
    return MODELS[min(MODELS.index(stage) + 1, len(MODELS) - 1)]


def optimizer_before(context: Context, stage: str) -> PreviousStage | None:
    """The stage before, where the optimizer starts with its averages and they were kept."""
    if not context.config.starts_warm(stage):
        return None
    previous = MODELS[MODELS.index(stage) - 1]
    before = PreviousStage(context.folder(previous), context.config.optim_of(previous))
    if before.checkpoints.exists():
        return before
    if context.group.leads:
        print(
            f"{stage}: {previous} kept no checkpoint, so the optimizer starts fresh, without that "
            "stage's averages of gradients",
            flush=True,
        )
    return None


def run_base(context: Context) -> dict[str, Any]:
    """Pretrains on text, while more of it is being prepared."""
    try:
        return _train(context, "base", context.config.base, None)
    finally:
        context.close()  # nobody reads further shards


def run_mid(context: Context) -> dict[str, Any]:
    """Midtrains on conversations, tool use and multiple choice."""
    return _train(context, "mid", context.config.mid, "base")


def run_sft(context: Context) -> dict[str, Any]:
    """Fine-tunes on conversations."""
    return _train(context, "sft", context.config.sft, "mid")


def run_rl(context: Context) -> dict[str, Any]:
    """Reinforcement learning on problems with a checkable answer."""
    config, tokenizer = context.config, tokenizer_of(context)
    read, folder = inputs.read_inputs(context.folder("data")), context.folder("rl")
    params = load_model(context.root, "sft", config.model)
    tasks = prepare.run_tasks([config.rl.task], config.seed, read, tokenizer)
    # what samples is computed as what is trained
    sampling = inference_compute(config.compute, config.model)
    job = RLJob(
        folder=folder,
        model=config.model,
        optim=config.optim_of("rl"),
        config=config.rl,
        task=tasks[config.rl.task],
        tokenizer=tokenizer,
        mesh=mesh_of(context),
        engine=MultiHostEngine.over(context.group, make_engine(context, params, compute=sampling)),
        seed=config.seed,
        dtype=backend().dtype,
        compute=config.compute,
        profile=capture_of(context, "rl"),
        trackers=config.track.trackers,
    )
    result = train_rl(job, params)
    if result.skipped:
        print(
            f"rl: {result.skipped} of {config.rl.steps} steps changed nothing: all answers to each "
            "problem were right, or all wrong"
        )
    digest = keep_model(context, "rl", result.params)
    if context.group.leads:
        remove(folder / "checkpoints")
    tenth = max(1, len(result.rewards) // 10)
    return {
        "artifact": digest,
        "seconds": result.seconds,
        "steps": config.rl.steps,
        "rollouts": config.rl.steps * config.rl.problems_per_step * config.rl.samples_per_problem,
        "reward_first_steps": sum(result.rewards[:tenth]) / tenth,
        "reward_last_steps": sum(result.rewards[-tenth:]) / tenth,
        "steps_without_signal": result.skipped,
        **{
            f"pass@{k}_{when}": rate
            for when, rates in result.pass_rates.items()
            for k, rate in rates.items()
        },
    }


def run_report(context: Context) -> dict[str, Any]:
    """Writes report.md, report.html and report.json."""
    sandbox = levels.detect().name if "humaneval" in context.config.eval.tasks else ""
    paths = write_report(context.config, context.root, context.done, sandbox=sandbox)
    return {"artifact": "report", "files": [path.name for path in paths]}


def _stage(name: str, title: str, run: Callable[[Context], dict[str, Any]], **how: Any) -> Stage:
    depends = INPUTS[name]
    return Stage(name, title, run, depends.settings, depends.after, **how)


STAGES = (
    _stage(
        "data", "text", run_data,
        outdated=lambda c: own_files_changed(c.config, c.folder("data")),
    ),
    _stage("tokenizer", "tokenizer", run_tokenizer),
    _stage("rows", "tokenized rows", run_rows),
    _stage("base", "base model", run_base, together=True),
    _stage("mid", "midtraining", run_mid, together=True),
    _stage("sft", "supervised fine-tuning", run_sft, together=True),
    _stage("rl", "reinforcement learning", run_rl, together=True),
    _stage("eval", "evaluation", run_eval, incremental=True, outdated=core_stage.is_outdated),
    _stage("report", "report", run_report),
)  # fmt: skip
