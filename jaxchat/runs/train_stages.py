"""The stages base, mid, sft and rl: each trains a model, from the weights of the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from jaxchat.checkpoints.save import remove_checkpoints, save_params
from jaxchat.config.schema import MODELS, ComputeConfig, RunConfig, TrainConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.loader import RowSource
from jaxchat.evals.chat import sampler
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.model import EvalModel
from jaxchat.inference.engine import Engine
from jaxchat.inference.jitted import MIN_PROMPT
from jaxchat.inference.replicas import MultiHostEngine
from jaxchat.inference.request import Request
from jaxchat.model import gpt
from jaxchat.model.backend import Compute, backend
from jaxchat.model.capabilities import choose_compute, evaluation_compute, inference_compute
from jaxchat.parallel.mesh import gathered, make_mesh, sharding
from jaxchat.paths import remove
from jaxchat.runs import eval_stages
from jaxchat.runs.compiler import Compiler, Program
from jaxchat.runs.inputs import text_of
from jaxchat.runs.opening import load_model, make_engine
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import Context
from jaxchat.train.compiled.program import step_shape
from jaxchat.train.grpo import RLJob, train_rl
from jaxchat.train.loop import FitJob, FitResult, PreviousStage, count_steps, fit
from jaxchat.train.micro_rows import Rows
from jaxchat.train.profiling import request
from jaxchat.train.profiling.capture import Capture
from jaxchat.train.rollouts import MIN_ROW
from jaxchat.train.session import TrainingJob, make_step
from jaxchat.train.step import state_shapes, state_shardings

MAX_LEN = 512  # of a sample and its prompt: training has the memory

# (steps done, parameters) -> what is logged of them, if anything
Probe = Callable[[int, Any], dict[str, Any]]


def run_base(context: Context) -> dict[str, Any]:
    """Pretrains on text, while more of it is being prepared."""
    config = context.config
    _compile_ahead(context, ("base",))
    try:
        params = gpt.init_params(jax.random.key(config.seed), config.model)
        text = text_of(context)
        job = _job(context, "base", config.base, text.train, text.held_out)
        context.await_programs("base")
        return _trained(context, job, fit(job, params))
    finally:
        context.close()  # no further shards are read


def run_mid(context: Context) -> dict[str, Any]:
    """Midtrains on conversations, tool use and multiple choice."""
    _compile_ahead(context, MODELS[1:])  # base is short, and would wait for processors
    job = _chat_job(context, "mid", context.config.mid)
    return _trained(context, job, fit(job, load_model(context.root, "base", job.model)))


def run_sft(context: Context) -> dict[str, Any]:
    """Fine-tunes on conversations."""
    job = _chat_job(context, "sft", context.config.sft)
    return _trained(context, job, fit(job, load_model(context.root, "mid", job.model)))


def _compile_ahead(context: Context, stages: Sequence[str]) -> None:
    """Begins to compile steps, where that needs no device."""
    if make_mesh(context.config.mesh).size == 1 and backend().shares_host:
        context.compiler = Compiler(_programs(context, stages))


def _programs(context: Context, stages: Sequence[str]) -> Iterator[Program]:
    """The steps of stages whose sizes are known; of rl's, that of short rows. Then, before rl,
    what samples and evaluates.

    A step that an earlier stage has taken is there already, and costs nothing.
    """
    config, whole = context.config, context.config.model.sequence_len
    trained = [stage for stage in stages if not config.leaves_out(stage)]
    for stage in trained:
        train = getattr(config, stage)
        tokens = min(MIN_ROW, whole) if stage == "rl" else whole
        if isinstance(train.micro_rows, int) and (train.steps or stage != "base"):
            yield stage, partial(_compile_step, context, stage, tokens)
    if "rl" in trained:
        yield "rl", partial(_compile_engine, context, _sampling_compute(config))
        yield "eval", partial(_compile_engine, context, None)


def _compile_engine(context: Context, compute: Compute | None, stopped: Callable[[], bool]) -> None:
    """What an engine needs for short prompts and answers; it has no weights yet."""
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), gpt.param_shapes(context.config.model))
    engine = make_engine(context, params, compute=compute)
    for size in (MIN_PROMPT // 2, MIN_PROMPT - 1):  # with the second the cache grows
        if not stopped():
            engine.prepare(Request(tokens=(0,) * size, max_tokens=1))


def _compile_step(context: Context, stage: str, tokens: int, stopped: Callable[[], bool]) -> None:
    del stopped  # it is one program
    _lower_step(context, stage, tokens).compile()


def _lower_step(context: Context, stage: str, tokens: int) -> Any:
    """A stage's step for rows of `tokens` tokens, as it will be taken."""
    config = context.config
    job = TrainingJob(**{**_of_every_job(context, stage), "profile": None})
    train = getattr(config, stage)
    steps = train.steps
    if not steps:  # of mid and sft: one pass over their rows
        rows = context.folder("rows") / f"{stage}_train"
        steps = count_steps(train, RowSource(rows, tokenizer_of(context).hash))
    _, optimizer, step = make_step(job, steps, train.lr_scale)
    shapes = state_shapes(job.model, optimizer, job.mesh), step_shape(config, stage, tokens).batch()
    layout = (
        state_shardings(gpt.param_shapes(job.model), optimizer, job.mesh),
        dict.fromkeys(shapes[1], sharding(job.mesh, "accumulation", "batch")),
    )
    # Placed as the stage's own, or it would trace and load the program again
    return step.lower(*jax.tree.map(_placed, shapes, layout))


def _placed(shape: jax.ShapeDtypeStruct, layout: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout)


def _chat_job(context: Context, stage: str, train: TrainConfig) -> FitJob:
    context.await_programs(stage)
    rows, tokenizer = context.folder("rows"), tokenizer_of(context)
    splits = (RowSource(rows / f"{stage}_{of}", tokenizer.hash) for of in ("train", "heldout"))
    return _job(context, stage, train, *splits)


def _job(context: Context, stage: str, train: TrainConfig, rows: Any, held_out: Any) -> FitJob:
    common = _of_every_job(context, stage)
    return FitJob(
        **common,
        train=train,
        rows=rows,
        held_out=held_out,
        token_bytes=tokenizer_of(context).token_bytes,
        probe=probe_of(context, stage, train, common["mesh"], common["dtype"]),
        before=optimizer_before(context, stage),
    )


def _of_every_job(context: Context, stage: str) -> dict[str, Any]:
    """The fields of a TrainingJob."""
    config, wanted = context.config, request.for_stage(context.profiles, stage)
    place = request.folder(context.root, stage)
    return {
        "title": stage,
        "folder": context.folder(stage),
        "model": config.model,
        "optim": config.optim_of(stage),
        "mesh": make_mesh(config.mesh),
        "seed": config.seed,
        "dtype": backend().dtype,
        "compute": config.compute,
        "profile": wanted and Capture(wanted, stage, place, config.model),
        "trackers": config.track.trackers,
    }


def _trained(context: Context, job: FitJob, result: FitResult) -> dict[str, Any]:
    """Saves the weights; the results of the stage."""
    config, stage = context.config, job.title
    digest = _save_model(context, stage, result.params)
    if context.group.leads and not job.train.keep_every:
        following = MODELS[MODELS.index(stage) + 1]
        remove_checkpoints(job.folder / "checkpoints", last=not config.starts_warm(following))
    return {
        "artifact": digest,
        **({"warm_start": job.before is not None} if config.starts_warm(stage) else {}),
        **_rows_used(job.train.micro_rows, result.micro_rows),
        "seconds": result.seconds,
        "steps": result.steps,
        "tokens": result.tokens,
        "loss": result.loss,
        "bits_per_byte": result.bits_per_byte,
    }


def _rows_used(configured: Rows, used: int) -> dict[str, int]:
    """The micro_rows of a stage, for its results, where they are not as configured."""
    return {} if used == configured else {"micro_rows": used}


def _save_model(context: Context, stage: str, params: Any) -> str:
    """Writes the weights that a stage made, by process 0, and returns their hash.

    Collective. Afterwards no process needs the stage's checkpoints.
    """
    whole = gathered(params)  # by all
    if not context.group.leads:
        return str(context.group.broadcast())
    digest = save_params(context.folder(stage) / "model", whole, {"stage": stage})
    return str(context.group.broadcast(digest))


def optimizer_before(context: Context, stage: str) -> PreviousStage | None:
    """The stage before, where the optimizer starts with its averages and they were saved."""
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


def run_rl(context: Context) -> dict[str, Any]:
    """Reinforcement learning on problems with a checkable answer."""
    config, rl, tokenizer = context.config, context.config.rl, tokenizer_of(context)
    context.await_programs("rl")
    read = inputs.read_inputs(context.folder("data"))
    params = load_model(context.root, "sft", config.model)
    tasks = prepare.run_tasks([rl.task], config.seed, read, tokenizer)
    sampling = _sampling_compute(config)
    job = RLJob(
        **_of_every_job(context, "rl"),
        config=rl,
        task=tasks[rl.task],
        tokenizer=tokenizer,
        engine=MultiHostEngine.over(context.group, make_engine(context, params, compute=sampling)),
    )
    result = train_rl(job, params)
    if result.skipped:
        print(
            f"rl: {result.skipped} of {rl.steps} steps changed nothing: all answers to each "
            "problem were right, or all wrong"
        )
    digest = _save_model(context, "rl", result.params)
    if context.group.leads:
        remove(job.folder / "checkpoints")
    tenth = max(1, len(result.rewards) // 10)
    rates = {f"pass@{k}_{at}": r for at, of in result.pass_rates.items() for k, r in of.items()}
    return {
        "artifact": digest,
        **_rows_used(rl.micro_rows, result.micro_rows),
        "seconds": result.seconds,
        "steps": rl.steps,
        "rollouts": rl.steps * rl.problems_per_step * rl.samples_per_problem,
        "reward_first_steps": sum(result.rewards[:tenth]) / tenth,
        "reward_last_steps": sum(result.rewards[-tenth:]) / tenth,
        "steps_without_signal": result.skipped,
        **rates,
    }


def _sampling_compute(config: RunConfig) -> Compute:
    """What samples is computed as what is trained."""
    return inference_compute(config.compute, config.model)


def probe_of(
    context: Context, stage: str, train: TrainConfig, mesh: Mesh, dtype: DTypeLike
) -> Probe | None:
    """What is measured of a stage's model while it trains: samples, and CORE on some examples.

    Collective, at the same steps of all processes; None: nothing is. Parameters are only read. The
    last step is left out: the evaluation measures the same of the finished model.
    """
    if not train.sample_every and not train.core_every:
        return None
    config, wanted = context.config, train.core_every and context.group.leads
    bundle = eval_stages.fetch_bundle(context) if wanted else None
    # every process uses process 0's folder
    folder = context.group.broadcast(None if bundle is None else str(bundle.folder))

    def probe(done: int, params: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if folder and done % train.core_every == 0:
            compute = evaluation_compute(config.compute, config.model, dtype)
            model = EvalModel(lambda: params, config.model, tokenizer_of(context), compute, mesh)
            result = evaluate_core(
                model, read_bundle(Path(folder)), max_problems=train.core_examples or None,
                title=f"{stage}: CORE",
            )  # fmt: skip
            found |= {"core": result.core, "core_name": result.name}
        if train.sample_every and done % train.sample_every == 0:
            found |= _samples(context, stage, dtype, params)
        if found and context.group.leads:
            print("\n".join(_lines(f"{stage} after step {done:,}", found)), flush=True)
        return found

    return probe


def _samples(context: Context, stage: str, dtype: DTypeLike, params: Any) -> dict[str, Any]:
    """`samples`, by process 0 on its first device; the engine does not outlive the call."""
    whole = gathered(params)  # by all
    if not context.group.leads:
        return {}
    tokenizer, model = tokenizer_of(context), context.config.model
    ask, prompts = sampler(stage)
    compute = choose_compute(ComputeConfig(products="plain"), model, dtype)
    engine = Engine(
        whole, model, tokenizer, device=jax.local_devices()[0], compute=compute,
        slots=len(prompts),
        max_len=min(model.sequence_len, MAX_LEN),
    )  # fmt: skip
    return {"samples": ask(engine, tokenizer, prompts)}


def _lines(when: str, found: dict[str, Any]) -> list[str]:
    """What was measured, for the terminal."""
    lines = [f"{when}: {found['core_name']}: {found['core']:.4f}"] if "core" in found else []
    for sample in found.get("samples", []):
        if "prompt" in sample:
            lines.append(f"{when}: {sample['prompt']} |> {sample['completion']!r}")
    return lines
