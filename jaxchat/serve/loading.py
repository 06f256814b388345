"""Opens the models to serve: a run's stage each, with as many slots as fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxchat.config.derive import count_params
from jaxchat.config.machine import cores, free_memory_bytes
from jaxchat.config.operations import ServeConfig
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import OutOfMemory
from jaxchat.inference.replicas import make_service
from jaxchat.model.backend import choose_products, compute_dtype
from jaxchat.model.kv_cache import init_cache
from jaxchat.runs.inputs import tokenizer_of
from jaxchat.runs.opening import find_model, load_model
from jaxchat.runs.runner import done_file
from jaxchat.serve.models import ServedModel

CACHE_COPIES = 3  # the cache itself, new prompts before they are placed, and what it grows to
LOGITS_COPIES = 4  # of a slot, float32, while it is sampled
GPU_SLOTS = 64
SHARE = 0.8  # of the free memory that may be taken


def load_models(
    root: Path,
    names: Sequence[tuple[str | None, str | None]],
    config: ServeConfig,
    tell: Callable[[str], object] = lambda _: None,
) -> list[ServedModel]:
    """The named (run, stage)s of the home `root`; None is the last run, or its best stage.

    Raises ArtifactError for what is not there, OutOfMemory where not even one slot fits.
    """
    models: list[ServedModel] = []
    for number, (run, stage) in enumerate(names):
        model = _load(root, run, stage, config, len(names) - number, tell)
        if model.id not in {other.id for other in models}:
            models.append(model)
    return models


def _load(
    root: Path,
    run: str | None,
    stage: str | None,
    config: ServeConfig,
    left: int,
    tell: Callable[[str], object],
) -> ServedModel:
    """Opens a model that may take what is free, shared with `left - 1` others."""
    context, chosen = find_model(root, run, stage)
    model, tokenizer = context.config.model, tokenizer_of(context)
    dtype = compute_dtype()
    params = load_model(context.root, chosen, model)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    name = f"{context.root.name}/{chosen}"
    wanted = config.slots or default_slots()
    slots = fit_slots(model, wanted, jnp.dtype(dtype).itemsize, free_bytes() / left, name)
    if slots < wanted:
        tell(f"memory is short: {name} decodes {slots} answers at once, not {wanted}.")
    record = context.done[chosen]
    return ServedModel(
        run=context.root.name,
        stage=chosen,
        config=model,
        tokenizer=tokenizer,
        parameters=count_params(model)["total"],
        created=int(done_file(context.root, chosen).stat().st_mtime),
        fingerprint="fp_" + str(record["results"]["artifact"])[:12],
        context=model.sequence_len,
        open_engine=partial(
            make_service, params, model, tokenizer, slots=slots, dtype=dtype,
            products=choose_products(replace(context.config.compute, fp8=False), model, dtype),
        ),
    )  # fmt: skip


def default_slots() -> int:
    """As many as a device decodes about as fast as one; measured, see docs/log.md."""
    return GPU_SLOTS if jax.default_backend() == "gpu" else max(4, 2 * cores())


def slot_bytes(model: ModelConfig, item: int) -> int:
    """What one more slot takes; `item` bytes a number of the cache."""
    shapes = jax.eval_shape(lambda: init_cache(model, 1, model.sequence_len))
    cache: int = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) * item
    return CACHE_COPIES * cache + LOGITS_COPIES * 4 * model.vocab_size


def fit_slots(model: ModelConfig, wanted: int, item: int, free: float, name: str) -> int:
    """As many slots as fit into `free` bytes, at most `wanted`. Raises OutOfMemory for none."""
    each = slot_bytes(model, item)
    fits = int(SHARE * free / each)
    if fits < 1:
        raise OutOfMemory(
            f"the model {name} needs {each / 1e6:.0f} MB for one conversation, and "
            f"{free / 1e6:.0f} MB are free; serve fewer models, or end other programs."
        )
    return min(wanted, fits)


def free_bytes() -> float:
    """Memory that is free where models compute."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return float(free_memory_bytes())
