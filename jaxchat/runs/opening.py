"""Opens a run for use: its complete stages, the weights of a model, and the engine to run it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxchat.config.machine import lanes
from jaxchat.config.schema import (
    CHAT_STAGES,
    MODELS,
    ComputeConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
)
from jaxchat.errors import ArtifactError
from jaxchat.evals.model import EvalModel
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model import gpt
from jaxchat.model.backend import Compute
from jaxchat.model.capabilities import evaluation_compute, inference_compute
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.runs import run_dir
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import Context, read_current
from jaxchat.runs.stages import BY_NAME

_evaluation_compute = functools.cache(evaluation_compute)  # it may try the device


def load_model(root: Path, stage: str, model: ModelConfig) -> Any:
    """The weights a stage of the run in `root` made, on one device."""
    from jaxchat.checkpoints.save import load_params  # Orbax: most of what this module imports

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), gpt.param_shapes(model)
    )
    return load_params(root / stage / "model", abstract)[0]


def make_engine(
    context: Context, params: Any, *, slots: int = 0, compute: Compute | None = None
) -> Service:
    """The engine that evaluates and samples, with `slots` on each device (0: as configured)."""
    config = context.config
    if compute is None:
        compute = inference_compute(ComputeConfig(products="plain"), config.model)
    return make_service(
        params,
        config.model,
        tokenizer_of(context),
        slots=slots or config.eval.slots,
        lanes=lanes(),
        compute=compute,
    )


def open_run(run: Path) -> Context:
    """A run with the stages that are complete under its own configuration."""
    context = Context(run_dir.read_config(run), run)
    read_current(BY_NAME.values(), context)
    return context


def find_model(
    root: Path, name: str | None, stage: str | None, among: Sequence[str] = CHAT_STAGES
) -> tuple[Context, str]:
    """A run of the home `root`, the named one or the last with a wanted model; and its stage.

    That is the named stage, or the first of `among` that is complete. Raises ArtifactError when
    there is no such run, or the stage is not complete.
    """
    wanted = among if stage is None else (stage,)
    context = open_run(run_dir.find(root, name, wanted))
    try:
        return context, check_stage(context, stage, among)
    except ArtifactError as error:
        others = [run for run in run_dir.with_one(root, wanted) if run != context.root.name]
        if not others:
            raise
        raise ArtifactError(f"{error} Or name a run that has one: {', '.join(others)}.") from error


def check_stage(context: Context, stage: str | None, among: Sequence[str] = MODELS) -> str:
    """The named stage of a run, or the first of `among` that is complete.

    Raises ArtifactError when there is none.
    """
    complete = [name for name in among if name in context.done]
    if complete and (stage is None or stage in complete):
        return stage or complete[0]
    there = f"complete there: {', '.join(complete)}" if complete else "no model there is complete"
    raise ArtifactError(
        f"the run in {context.root} has no model {stage or 'to talk to'} ({there}); "
        f"{how_to_make(context.config, stage)}"
    )


def how_to_make(config: RunConfig, stage: str | None) -> str:
    """What to do for a model that a run does not have."""
    if stage and config.leaves_out(stage):
        return f"its settings leave {stage} out (rl.steps is 0, or the run began with a later one)."
    return "resume it: give its run_speedrun.py command again."


def eval_model(context: Context, stage: str, load: Callable[[], Any] | None = None) -> EvalModel:
    """A complete stage's model, to be measured on all devices of this process.

    `load` gives its weights, where they may be in memory already.
    """
    config, mesh = context.config, make_mesh(MeshConfig(), jax.local_devices())

    def whole_on_each_device() -> Any:
        params = load() if load else load_model(context.root, stage, config.model)
        return put(params, param_shardings(mesh, params))

    return EvalModel(
        whole_on_each_device,
        config.model,
        tokenizer_of(context),
        _evaluation_compute(config.compute, config.model),
        mesh,
        digest=str(context.done[stage]["results"]["artifact"]),
    )
