"""What a model is asked while it trains: samples, and CORE on some examples of each task (layer 4).

Nothing that is learned depends on it: parameters are only read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.config.schema import ComputeConfig, TrainConfig
from jaxchat.evals.chat import COMPLETIONS, QUESTIONS, chat_samples, text_samples
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.inference.engine import Engine
from jaxchat.model.capabilities import choose_compute, evaluation_compute
from jaxchat.parallel.mesh import gathered
from jaxchat.runs import core_stage
from jaxchat.runs.inputs import tokenizer_of
from jaxchat.runs.runner import Context

MAX_LEN = 512  # of a prompt and its completion: training has the memory

# (steps done, parameters) -> what is logged of them, if anything
Probe = Callable[[int, Any], dict[str, Any]]


def probe_of(
    context: Context, stage: str, train: TrainConfig, mesh: Mesh, dtype: DTypeLike
) -> Probe | None:
    """What is asked of a stage's model, by all processes at the same steps; None: nothing is.

    The last step is none of them: the evaluation asks the same of the whole model.
    """
    if not train.sample_every and not train.core_every:
        return None
    bundle = core_stage.fetch(context) if train.core_every and context.group.leads else None
    # of several processes, all take process 0's word for it
    folder = context.group.broadcast(None if bundle is None else str(bundle.folder))

    def probe(done: int, params: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if folder and done % train.core_every == 0:
            found |= core_of(context, stage, train, Path(folder), mesh, dtype, params)
        if train.sample_every and done % train.sample_every == 0:
            found |= samples_of(context, stage, dtype, params)
        if found and context.group.leads:
            print("\n".join(_told(f"{stage} after step {done:,}", found)), flush=True)
        return found

    return probe


def core_of(
    context: Context,
    stage: str,
    train: TrainConfig,
    folder: Path,
    mesh: Mesh,
    dtype: DTypeLike,
    params: Any,
) -> dict[str, Any]:
    """`core`, and `core_name`, which says of how much of it."""
    config = context.config
    result = evaluate_core(
        params,
        config.model,
        tokenizer_of(context),
        read_bundle(folder),
        compute=evaluation_compute(config.compute, config.model, dtype),
        mesh=mesh,
        max_problems=train.core_examples or None,
        title=f"{stage}: CORE",
    )
    return {"core": result.core, "core_name": result.name}


def samples_of(context: Context, stage: str, dtype: DTypeLike, params: Any) -> dict[str, Any]:
    """`samples`, by process 0 on its first device; the engine does not outlive the call."""
    whole = gathered(params)  # by all
    if not context.group.leads:
        return {}
    tokenizer, device = tokenizer_of(context), jax.local_devices()[0]
    prompts = COMPLETIONS if stage == "base" else QUESTIONS
    model = context.config.model
    compute = choose_compute(ComputeConfig(products="plain"), model, dtype)
    engine = Engine(
        whole, model, tokenizer, device=device, compute=compute, slots=len(prompts),
        max_len=min(model.sequence_len, MAX_LEN),
    )  # fmt: skip
    ask = text_samples if stage == "base" else chat_samples
    return {"samples": ask(engine, tokenizer, prompts)}


def _told(when: str, found: dict[str, Any]) -> list[str]:
    """What was found, for the terminal."""
    lines = [f"{when}: {found['core_name']}: {found['core']:.4f}"] if "core" in found else []
    for sample in found.get("samples", []):
        if "prompt" in sample:
            lines.append(f"{when}: {sample['prompt']} |> {sample['completion']!r}")
    return lines
