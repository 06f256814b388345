"""The stages of a run, from text to report: what `run_speedrun.py` lists (layer 4)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat import machine
from jaxchat.config import (
    MODELS,
    ModelConfig,
    RLConfig,
    RunConfig,
    TrainConfig,
    hashed_settings,
)
from jaxchat.data import chat_rows, inputs, prepare, text_rows
from jaxchat.data.rows import RowSource, validation_batches
from jaxchat.data.stream import HeldOutRows
from jaxchat.evals import compression, humaneval
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.evals.chat import evaluate_tasks, mean_reward, pass_rates, sampled_right
from jaxchat.evals.chatcore import chatcore
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.samples import COMPLETIONS, QUESTIONS, chat_samples, text_samples
from jaxchat.home import read_json, remove, sha256_text, write_json
from jaxchat.infer.replicas import make_service
from jaxchat.infer.service import Service
from jaxchat.infer.spread import Spread
from jaxchat.infer.weights import gathered
from jaxchat.model import gpt
from jaxchat.pipeline import Context, Stage
from jaxchat.products import Products
from jaxchat.profiling import request
from jaxchat.profiling.capture import Capture
from jaxchat.report import core_record, write_report
from jaxchat.run_inputs import hub_of, text_folder, text_of, tokenizer_in, tokenizer_of
from jaxchat.sharding import make_mesh
from jaxchat.tools import levels
from jaxchat.train.checkpoint import load_params, remove_checkpoints, save_params
from jaxchat.train.compute import choose_compute, choose_products
from jaxchat.train.fit import Before, Job, fit
from jaxchat.train.rl import RLJob, train_rl


def mesh_of(context: Context) -> Mesh:
    """The run's mesh over all devices."""
    return make_mesh(context.config.mesh)


def abstract_params(model: ModelConfig) -> Any:
    """Shapes and types of a model's parameters, on one device."""
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def load_model(root: Path, stage: str, model: ModelConfig) -> Any:
    """The weights a stage of the run in `root` made."""
    return load_params(root / stage / "model", abstract_params(model))[0]


# How a stage is computed, saved and watched. With other ones it goes on: on other devices, with
# less memory, after a spike.
HOW = ("micro_rows", "save_every", "keep", "keep_every", "spike", "rollbacks")


def learned(train: TrainConfig | RLConfig) -> dict[str, Any]:
    """The settings that decide what a stage learns."""
    return {name: value for name, value in hashed_settings(train).items() if name not in HOW}


def warm_start(config: RunConfig, stage: str) -> tuple[str, ...]:
    """What the hash of a stage has of a warm start: nothing where there is none."""
    return ("warm start",) if config.starts_warm(stage) else ()


def rewarded(rl: RLConfig) -> tuple[str, ...]:
    """The settings that decide the mean reward, as `hashed_settings` would have them."""
    return (rl.task, f"top_k {rl.top_k}") if rl.top_k else (rl.task,)


def keep_model(context: Context, stage: str, params: Any) -> str:
    """Writes the weights that a stage made, by process 0, and returns their hash.

    All processes must call this; afterwards none of them needs the stage's checkpoints.
    """
    whole = gathered(params)  # by all
    if not context.group.leads:
        return str(context.group.broadcast())
    digest = save_params(context.folder(stage) / "model", whole, {"stage": stage})
    return str(context.group.broadcast(digest))


def compute_dtype() -> DTypeLike:
    """What activations are computed in: bf16 on a GPU, fp32 on a CPU; weights are always fp32."""
    dtype: DTypeLike = jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
    return dtype


def capture_of(context: Context, stage: str) -> Capture | None:
    """What `--profile` asks to record of a training stage."""
    wanted = request.for_stage(context.profiles, stage)
    if wanted is None:
        return None
    return Capture(wanted, stage, request.folder(context.root, stage), context.config.model)


def make_engine(
    context: Context, params: Any, *, slots: int = 0, products: Products = "plain"
) -> Service:
    """What evaluates and samples, with `slots` on each device or lane (0: as configured)."""
    config = context.config
    return make_service(
        params,
        config.model,
        tokenizer_of(context),
        slots=slots or config.eval.slots,
        lanes=machine.lanes(),
        dtype=compute_dtype(),
        products=products,
    )


def run_data(context: Context) -> dict[str, Any]:
    """Finds the text and the conversations, and fetches what is needed first."""
    return inputs.gather(context.config, context.folder("data"), hub_of(context))


def run_tokenizer(context: Context) -> dict[str, Any]:
    """Trains the tokenizer, and measures how it compresses."""
    read = inputs.read_inputs(context.folder("data"))
    tokenizer_in.cache_clear()
    results = prepare.train_tokenizer(context.config, read, context.folder("tokenizer"))
    measured = compression.survey({context.config.name: tokenizer_of(context)})
    return results | {"compression": [result.to_json() for result in measured]}


def run_rows(context: Context) -> dict[str, Any]:
    """Renders and packs conversations; the first rows of text, or all where they are few."""
    config, tokenizer, folder = context.config, tokenizer_of(context), context.folder("rows")
    read = inputs.read_inputs(context.folder("data"))
    told: dict[str, Any] = {}
    if config.data.source == "machine":
        prepared = text_rows.prepare_text(
            config, read, tokenizer, text_folder(context), hub_of(context),
            workers=machine.cores(),
        )  # fmt: skip
        told = {
            "base_train": text_counts(prepared.training.rows, config.model),
            "base_heldout": text_counts(prepared.held_out.rows, config.model),
        }
    text_rows.forget_others(text_folder(context))
    rows = text_of(context)
    if not told:
        told = {"base_heldout": text_counts(len(rows.held_out), config.model)}
    chat = chat_rows.build_chat_rows(config, read, tokenizer, rows.by_split, folder)
    if config.imported.trains("base"):
        rows.train.take(np.arange(1), config.seed)  # waits until training can begin
    else:
        context.close()  # nobody reads further shards
    digest = text_rows.text_hash(read, tokenizer, config.model.sequence_len + 1)
    parts = {"text": digest, **chat.pop("parts")}
    return {**told, **chat, "parts": parts, "artifact": sha256_text(*parts.values())}


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
    job = Job(
        title=stage,
        folder=folder,
        model=config.model,
        optim=config.optim_of(stage),
        train=train,
        rows=job_rows[0],
        held_out=job_rows[1],
        token_bytes=tokenizer.token_bytes,
        mesh=mesh_of(context),
        seed=config.seed,
        dtype=compute_dtype(),
        compute=config.compute,
        profile=capture_of(context, stage),
        trackers=config.track.trackers,
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


def optimizer_before(context: Context, stage: str) -> Before | None:
    """The stage before, where the optimizer starts with its averages and they were kept."""
    if not context.config.starts_warm(stage):
        return None
    previous = MODELS[MODELS.index(stage) - 1]
    before = Before(context.folder(previous), context.config.optim_of(previous))
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
    trained = replace(config.compute, fp8=False)  # what samples is computed as what is trained
    products = choose_products(trained, config.model, compute_dtype())
    job = RLJob(
        folder=folder,
        model=config.model,
        optim=config.optim_of("rl"),
        config=config.rl,
        task=tasks[config.rl.task],
        tokenizer=tokenizer,
        mesh=mesh_of(context),
        engine=Spread.over(context.group, make_engine(context, params, products=products)),
        seed=config.seed,
        dtype=compute_dtype(),
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


def run_eval(context: Context) -> dict[str, Any]:
    """Evaluates every model; what an interrupted evaluation finished is kept."""
    scores: dict[str, Any] = {}
    engine: Service | None = None
    for stage in (name for name in MODELS if not context.config.imported.leaves_out(name)):
        path = context.folder("eval") / f"{stage}.json"
        if not path.exists():
            params = load_model(context.root, stage, context.config.model)
            if engine is None:
                engine = make_engine(context, params)
            engine.set_params(params)
            write_json(path, _evaluate(context, stage, params, engine))
        scores[stage] = read_json(path)
    return {"artifact": sha256_text(json.dumps(scores)), "models": scores}


def _evaluate(context: Context, stage: str, params: Any, engine: Service) -> dict[str, Any]:
    config, tokenizer = context.config, tokenizer_of(context)
    read = inputs.read_inputs(context.folder("data"))
    held_out = HeldOutRows(text_folder(context), tokenizer.hash)
    batches = validation_batches(held_out, config.eval.slots, config.base.eval_rows)
    names = list(config.eval.tasks)
    if "humaneval" in names and levels.detect().name == "none":
        print("humaneval is left out: programs cannot be locked in here; see jaxchat doctor")
        names.remove("humaneval")
    tasks = prepare.run_tasks(names, config.seed, read, tokenizer)
    limit = config.eval.max_new_tokens
    compute = choose_compute(
        replace(config.compute, fp8=False, products="plain"), config.model, compute_dtype()
    )
    scores = evaluate_tasks(
        engine, tokenizer, tasks, problems=config.eval.problems, max_tokens=limit,
        title=f"evaluating {stage}", judge=humaneval.judge() if "humaneval" in names else None,
    )  # fmt: skip
    record: dict[str, Any] = {
        "bits_per_byte": bits_per_byte(
            params, list(batches), tokenizer.token_bytes, config.model, compute
        ),
        "tasks": {name: score.to_json() for name, score in scores.items()},
        "tools": {
            "calls": sum(score.calls for score in scores.values()),
            "failed": sum(score.failed_calls for score in scores.values()),
        },
    }
    if (
        score := chatcore({name: found.score.accuracy for name, found in scores.items()})
    ) is not None:
        record["chatcore"] = score
    if stage == "base" and config.eval.bundle:
        bundle = read_bundle(Path(config.eval.bundle).expanduser())
        core = evaluate_core(params, config.model, tokenizer, bundle, compute=compute)
        record["core"] = core_record(core.to_json())
    if stage in ("sft", "rl"):
        task = prepare.run_tasks([config.rl.task], config.seed, read, tokenizer)[config.rl.task]
        samples = config.eval.reward_samples
        right = sampled_right(
            engine, tokenizer, task, problems=config.eval.problems, samples=samples,
            max_tokens=limit, seed=config.seed, top_k=config.rl.top_k, title=f"rewards of {stage}",
        )  # fmt: skip
        rates = pass_rates(right, samples)
        record["reward"] = mean_reward(right, samples).to_json() | {
            f"pass@{k}": rate for k, rate in rates.items()
        }
    if stage == "base":
        record["samples"] = text_samples(engine, tokenizer, COMPLETIONS)
    else:
        record["samples"] = chat_samples(engine, tokenizer, QUESTIONS)
    return record


def run_report(context: Context) -> dict[str, Any]:
    """Writes report.md, report.html and report.json."""
    sandbox = levels.detect().name if "humaneval" in context.config.eval.tasks else ""
    paths = write_report(context.config, context.root, context.done, sandbox=sandbox)
    return {"artifact": "report", "files": [path.name for path in paths]}


STAGES = (
    Stage(
        "data", "text", run_data,
        lambda c: (c.data, c.tokenizer.max_chars, c.model.sequence_len, inputs.chat_names(c)),
        outdated=lambda c: inputs.own_files_changed(c.config, c.folder("data")),
    ),
    Stage(
        "tokenizer", "tokenizer", run_tokenizer,
        lambda c: (c.tokenizer, prepare.spoken(c.mid), c.seed), ("data:text",),
    ),
    Stage(
        "rows", "tokenized rows", run_rows,
        lambda c: (c.model.sequence_len, learned(c.mid), learned(c.sft), c.seed),
        ("data", "tokenizer"),
    ),
    Stage(
        "base", "base model", run_base,
        lambda c: (c.model, c.optim, learned(c.base), c.compute.fp8, c.seed),
        ("rows:text", "tokenizer"), together=True,
    ),
    Stage(
        "mid", "midtraining", run_mid,
        lambda c: (c.optim_of("mid"), learned(c.mid), c.compute.fp8, c.seed, *warm_start(c, "mid")),
        ("base", "rows:mid", "tokenizer"), together=True,
    ),
    Stage(
        "sft", "supervised fine-tuning", run_sft,
        lambda c: (c.optim_of("sft"), learned(c.sft), c.compute.fp8, c.seed, *warm_start(c, "sft")),
        ("mid", "rows:sft", "tokenizer"), together=True,
    ),
    Stage(
        "rl", "reinforcement learning", run_rl,
        lambda c: (c.optim_of("rl"), learned(c.rl), c.compute.fp8, c.seed, c.eval.slots),
        ("sft", "data", "tokenizer"),
        together=True,
    ),
    Stage(
        "eval", "evaluation", run_eval,
        lambda c: (c.eval, c.seed, c.base.eval_rows, *rewarded(c.rl)),
        (*MODELS, "rows:text", "data", "tokenizer"),
    ),
    Stage("report", "report", run_report, lambda c: (c,), ("eval",)),
)  # fmt: skip
