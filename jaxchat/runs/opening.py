"""Opens a run for use: its complete stages, the weights of a model, and the engine to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxchat.checkpoints.save import load_params
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
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model import gpt
from jaxchat.model.backend import Compute
from jaxchat.model.capabilities import evaluation_compute, inference_compute
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.runs import run_dir
from jaxchat.runs.inputs import tokenizer_of
from jaxchat.runs.runner import Context, read_current
from jaxchat.runs.stages import BY_NAME
from jaxchat.tokenizer.bpe import Tokenizer


def abstract_params(model: ModelConfig) -> Any:
    """Shapes and types of a model's parameters, on one device."""
    shapes = gpt.param_shapes(model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def load_model(root: Path, stage: str, model: ModelConfig) -> Any:
    """The weights a stage of the run in `root` made."""
    return load_params(root / stage / "model", abstract_params(model))[0]


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


@dataclass(frozen=True)
class Opened:
    """A model and what is needed to run it."""

    run: Path  # its folder
    stage: str  # which of the run's models
    digest: str  # of the weights
    config: RunConfig
    params: Any  # whole on every device of `mesh`
    tokenizer: Tokenizer
    compute: Compute
    mesh: Mesh  # its axis `data` is over all devices


def open_model(root: Path, name: str | None, stage: str) -> Opened:
    """Opens a stage's model of the run called `name`, or the last one, in the home `root`.

    Raises ArtifactError when there is no such run, or the stage is not complete.
    """
    context = open_run(run_dir.find(root, name, (stage,)))
    run, config = context.root, context.config
    check_stage(context, stage)
    mesh = make_mesh(MeshConfig())
    params = load_model(run, stage, config.model)
    return Opened(
        run=run,
        stage=stage,
        digest=str(context.done[stage]["results"]["artifact"]),
        config=config,
        params=put(params, param_shardings(mesh, params)),
        tokenizer=tokenizer_of(context),
        compute=evaluation_compute(config.compute, config.model),
        mesh=mesh,
    )
