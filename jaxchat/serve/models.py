"""The models that are served: each a run's stage, with as many slots as fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxchat.config.derive import count_params
from jaxchat.config.machine import cores, free_memory_bytes
from jaxchat.config.operations import ServeConfig
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import OutOfMemory
from jaxchat.evals.model import EvalModel
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model.backend import backend
from jaxchat.model.capabilities import evaluation_compute, inference_compute
from jaxchat.model.kv_cache import init_cache
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.runs.inputs import tokenizer_of
from jaxchat.runs.opening import find_model, load_model
from jaxchat.runs.runner import done_file
from jaxchat.serve.schema import ApiError
from jaxchat.tokenizer.bpe import Tokenizer

CACHE_COPIES = 3  # the cache itself, new prompts before they are placed, and what it grows to
LOGITS_COPIES = 4  # of a slot, float32, while it is sampled
GPU_SLOTS = 64
SHARE = 0.8  # of the free memory is used at most


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model and what clients see of it."""

    run: str
    stage: str
    config: ModelConfig
    tokenizer: Tokenizer
    parameters: int
    created: int  # seconds since 1970
    fingerprint: str  # of the weights
    context: int  # T, tokens of prompt and answer together
    open_engine: Callable[[], Service]  # makes its engine
    evaluated: EvalModel | None = None  # as evaluations compute it, to score prompts

    @property
    def id(self) -> str:
        """The name that clients use."""
        return f"{self.run}/{self.stage}"

    def card(self, *, default: bool) -> dict[str, Any]:
        """Its entry in /v1/models."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "jaxchat",
            "jaxchat": {
                "run": self.run,
                "stage": self.stage,
                "parameters": self.parameters,
                "depth": self.config.n_layer,
                "context": self.context,
                "vocab_size": self.config.vocab_size,
                "tools": ["calculator"] if self.tokenizer.has_tools else [],
                "default": default,
            },
        }


def choose(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """The named model, or the first. Raises ApiError 404, listing the models there are."""
    by_id = {model.id: model for model in models}
    if name and name not in by_id:
        message = f"there is no model {name!r}; the models here are {', '.join(by_id)}."
        raise ApiError(404, message, code="model_not_found", param="model")
    return by_id[name] if name else models[0]


def load_models(
    root: Path,
    names: Sequence[tuple[str | None, str | None]],
    config: ServeConfig,
    notify: Callable[[str], object] = lambda _: None,
) -> list[ServedModel]:
    """Opens the named (run, stage)s of the home `root`; None is the last run, or its best stage.

    Raises ArtifactError for what is not there, OutOfMemory where not even one slot fits.
    """
    models: list[ServedModel] = []
    for number, (run, stage) in enumerate(names):
        model = _load(root, run, stage, config, len(names) - number, notify)
        if model.id not in {other.id for other in models}:
            models.append(model)
    return models


def _load(
    root: Path,
    run: str | None,
    stage: str | None,
    config: ServeConfig,
    left: int,
    notify: Callable[[str], object],
) -> ServedModel:
    """Opens a model that shares the free memory with `left - 1` others."""
    context, chosen = find_model(root, run, stage)
    model, tokenizer = context.config.model, tokenizer_of(context)
    dtype = backend().dtype
    params = load_model(context.root, chosen, model)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    name = f"{context.root.name}/{chosen}"
    # by default as many as a device decodes about as fast as one; measured, see docs/log.md
    wanted = config.slots or (max(4, 2 * cores()) if backend().shares_host else GPU_SLOTS)
    slots = fit_slots(model, wanted, jnp.dtype(dtype).itemsize, free_bytes() / left, name)
    if slots < wanted:
        notify(f"memory is short: {name} decodes {slots} answers at once, not {wanted}.")
    record = context.done[chosen]
    cut, config_cut = cut_vocabulary(params, model, tokenizer.vocab_size)
    compute = evaluation_compute(context.config.compute, model)
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
            make_service, params, model, tokenizer, slots=slots,
            compute=inference_compute(context.config.compute, model),
        ),
        evaluated=EvalModel(lambda: cut, config_cut, tokenizer, compute),
    )  # fmt: skip


def slot_bytes(model: ModelConfig, item: int) -> int:
    """The bytes that one more slot takes; `item` is the size of a number in the cache."""
    shapes = jax.eval_shape(lambda: init_cache(model, 1, model.sequence_len))
    cache: int = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) * item
    return CACHE_COPIES * cache + LOGITS_COPIES * 4 * model.vocab_size


def fit_slots(model: ModelConfig, wanted: int, item: int, free: float, name: str) -> int:
    """The slots that fit into `free` bytes, at most `wanted`. Raises OutOfMemory for none."""
    each = slot_bytes(model, item)
    fits = int(SHARE * free / each)
    if fits < 1:
        raise OutOfMemory(
            f"the model {name} needs {each / 1e6:.0f} MB for one conversation, and "
            f"{free / 1e6:.0f} MB are free; serve fewer models, or end other programs."
        )
    return min(wanted, fits)


def free_bytes() -> float:
    """Bytes of free memory where models compute."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return float(free_memory_bytes())
