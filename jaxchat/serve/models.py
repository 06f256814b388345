"""The models that are served: each a run's stage, with as many slots as fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxchat.config.derive import count_params
from jaxchat.config.machine import cores, free_memory_bytes
from jaxchat.config.operations import ServeConfig, Weights
from jaxchat.config.schema import CHAT_STAGES, MODELS, ModelConfig
from jaxchat.errors import ConfigError, OutOfMemory
from jaxchat.evals.model import EvalModel
from jaxchat.inference.engine import STEPS
from jaxchat.inference.measure import weight_bytes
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model.backend import backend
from jaxchat.model.capabilities import evaluation_compute, inference_compute, with_weights
from jaxchat.model.kv_cache import init_cache
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.runs.opening import find_model, load_model
from jaxchat.runs.run_tokenizer import tokenizer_of
from jaxchat.runs.runner import done_file
from jaxchat.serve.schema import ApiError
from jaxchat.tokenizer.bpe import Tokenizer

CACHE_COPIES = 3  # the cache itself, new prompts before they are placed, and what it grows to
LOGITS_COPIES = 4  # of a slot, float32, while it is sampled
GPU_SLOTS = 64
SHARE = 0.8  # of the free memory is used at most
# On a CPU a dispatch lasts so long, if its steps do: its tokens come all at once, and beginning it
# costs some 0.2 ms. Measured with 1, 2, 4 and 8 steps of d4, d6, d12: docs/log.md, 2026-11-28.
DISPATCH_SECONDS = 0.005
CPU_BANDWIDTH = 1e10  # bytes of weights that a CPU reads in a second
NARROWED = {"bf16": 0.5, "int8": 0.25}  # bytes of a kernel held so, of those in float32


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

    aliases: tuple[str, ...] = ()  # names that clients may use instead

    @property
    def source(self) -> str:
        """RUN/STAGE."""
        return f"{self.run}/{self.stage}"

    @property
    def id(self) -> str:
        """The name under which it is listed: its first alias, else RUN/STAGE."""
        return self.aliases[0] if self.aliases else self.source

    def card(self, *, default: bool, ready: bool = True) -> dict[str, Any]:
        """Its entry in /v1/models; `ready`: whether it answers already."""
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
                "ready": ready,
            },
        }


def choose(
    models: Sequence[ServedModel], name: str | None, *, any_name: bool = False
) -> ServedModel:
    """The named model, or the first: where there is no name, or `any_name` will do.

    Names are the aliases, RUN/STAGE, and RUN where one of its stages is served. Raises ApiError
    404, listing the models there are.
    """
    runs = [model.run for model in models]
    for model in models:
        known = {model.source, *model.aliases, *([model.run] if runs.count(model.run) == 1 else ())}
        if name in known:
            return model
    if name and not any_name:
        there = ", ".join(model.id for model in models)
        message = f"there is no model {name!r}; the models here are {there}."
        raise ApiError(404, message, code="model_not_found", param="model")
    return models[0]


def load_models(
    root: Path,
    names: Sequence[tuple[str | None, str | None] | tuple[str | None, str | None, str]],
    config: ServeConfig,
    notify: Callable[[str], object] = lambda _: None,
) -> list[ServedModel]:
    """Opens the named (run, stage)s of the home `root`; None is the last run, or its best stage.

    A third item is an alias. Raises ArtifactError for what is not there, OutOfMemory where not even
    one slot fits, ConfigError for two models of one name.
    """
    asked: dict[tuple[str | None, str | None], list[str]] = {}
    for run, stage, *aliases in names:
        asked.setdefault((run, stage), []).extend(filter(None, aliases))
    models: dict[str, ServedModel] = {}
    for number, ((run, stage), aliases) in enumerate(asked.items()):
        model = _load(root, run, stage, config, len(asked) - number, notify)
        model = models.get(model.source, model)
        given = tuple(dict.fromkeys([*model.aliases, *aliases]))
        models[model.source] = replace(model, aliases=given)
    found = list(models.values())
    every = [name for model in found for name in {model.source, *model.aliases}]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models have the name {twice!r}; give them different ones.")
    return found


def _load(
    root: Path,
    run: str | None,
    stage: str | None,
    config: ServeConfig,
    left: int,
    notify: Callable[[str], object],
) -> ServedModel:
    """Opens a model that shares the free memory with `left - 1` others."""
    # a base model does not chat, and is served where it is named: to complete texts, to be scored
    context, chosen = find_model(root, run, stage, MODELS if stage == "base" else CHAT_STAGES)
    model, tokenizer = context.config.model, tokenizer_of(context)
    dtype = backend().dtype
    params = load_model(context.root, chosen, model)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    name = f"{context.root.name}/{chosen}"
    # by default as many as a device decodes about as fast as one; measured, see docs/log.md
    wanted = config.slots or (max(4, 2 * cores()) if backend().shares_host else GPU_SLOTS)
    free, item = free_bytes() / left, jnp.dtype(dtype).itemsize
    slots = fit_slots(model, wanted, item, free, name)
    rest = SHARE * free - slots * slot_bytes(model, item)
    prefix_bytes = min(config.prefix_mb * 10**6, int(rest))
    if slots < wanted:
        notify(f"memory is short: {name} decodes {slots} answers at once, not {wanted}.")
    record = context.done[chosen]
    cut, config_cut = cut_vocabulary(params, model, tokenizer.vocab_size)
    compute = evaluation_compute(context.config.compute, model)
    weights = cast(Weights, config.weights)
    steps = dispatch_steps(cut, weights)
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
            make_service, params, model, tokenizer, slots=slots, prefix_bytes=prefix_bytes,
            compute=with_weights(inference_compute(context.config.compute, model), weights),
            steps_per_dispatch=steps, first_alone=steps < STEPS,
        ),
        evaluated=EvalModel(lambda: cut, config_cut, tokenizer, compute),
    )  # fmt: skip


def dispatch_steps(params: Any, weights: Weights = "auto") -> int:
    """Decode steps of a dispatch with these weights: fewer where a CPU takes long for each."""
    if not backend().shares_host:
        return STEPS
    seconds = weight_bytes(params) * NARROWED.get(weights, 1.0) / CPU_BANDWIDTH
    lengths = (2**power for power in range(STEPS.bit_length()))
    return next((steps for steps in lengths if steps * seconds >= DISPATCH_SECONDS), STEPS)


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
