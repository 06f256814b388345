"""The loss of every choice of many examples, batch by batch over a mesh.

Axes: B rows, P positions of the trunk, R of all branches, T = P + R, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.evals.bpb import in_flight
from jaxchat.evals.core.batches import Batch, make_batches
from jaxchat.evals.core.prompts import Row
from jaxchat.evals.logits import read_logits
from jaxchat.evals.model import EvalModel
from jaxchat.inference.ahead import Ahead
from jaxchat.model.backend import Compute, backend
from jaxchat.model.branches import branch_features
from jaxchat.model.vocabulary import check_ids
from jaxchat.optim.zero import ZeroLayout
from jaxchat.parallel.mesh import RULES, batch_shards, make_mesh, put, replicated, sharding
from jaxchat.parallel.spmd import mesh_compute, over_rows


@dataclass(frozen=True)
class Sizes:
    """The amount that is computed at once."""

    tokens: int  # of a batch, on each device
    steps: int  # sizes of rows from one power of two to the next: see `make_batches`
    head: int  # scored tokens whose logits are held at once


CPU = Sizes(tokens=4_096, steps=2, head=128)
GPU = Sizes(tokens=65_536, steps=1, head=1_024)  # where compiling takes longer than computing


@dataclass(frozen=True)
class ChoiceScore:
    """The scored tokens of one choice."""

    loss: float  # their mean -log p in nats; nan when there is none: one choice begins the others
    greedy: bool  # whether each is the most probable one


@functools.cache
def _scores_over(mesh: Mesh, model: ModelConfig, compute: Compute, head: int) -> Any:
    """The jitted params, batch of [1, B, ...] -> (log p [B,R], whether it is the highest [B,R])."""
    zero = ZeroLayout.of_model(mesh, model)
    gather = zero.model_gather()
    compute = mesh_compute(mesh, model, compute)

    def local(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        params, one = gather(params), {name: x[0] for name, x in batch.items()}
        x = branch_features(
            params, one["tokens"], one["lengths"], one["branch"], one["positions"], model, compute
        )
        x = x.reshape(-1, x.shape[-1])[one["at"].reshape(-1)]
        targets = one["targets"].reshape(-1)
        scores = read_logits(params, x, targets, one["count"][0], model, head, _target_scores)
        logprobs, best = (score.reshape(one["targets"].shape) for score in scores)
        return logprobs, best

    rows = P(RULES["batch"])
    over = over_rows(local, mesh, zero.stored, (rows, rows))
    return jax.jit(over, out_shardings=replicated(mesh))


def _target_scores(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log p(target) [n] of logits [n,V], and whether it is the highest."""
    hit = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    logprob = hit - jax.nn.logsumexp(logits, axis=-1)
    return logprob, jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets


def score_rows(
    rows: Sequence[Row],
    model: EvalModel,
    *,
    sizes: Sizes | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> dict[tuple[int, int], ChoiceScore]:
    """(example, choice) -> its score.

    The rows of a batch are split over the model's mesh; every process gives and gets all.
    `progress` is called with the number of rows of each batch that is done.
    """
    mesh = model.mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    sizes = sizes or (CPU if backend(mesh.devices.flat[0].platform).sizes == "cpu" else GPU)
    scores_over = _scores_over(mesh, model.config, model.compute, sizes.head)
    layout, shards = sharding(mesh, "accumulation", "batch"), batch_shards(mesh)
    batches = list(make_batches(
        rows, tokens=sizes.tokens, steps=sizes.steps, shards=shards, copies=model.config.smear
    ))  # fmt: skip

    def dispatch(batch: Batch) -> tuple[Batch, Any]:
        for name in ("tokens", "targets"):
            check_ids(batch.arrays[name], model.config.vocab_size, "a prompt of CORE")
        arrays = {name: array[None] for name, array in batch.arrays.items()}
        return batch, scores_over(model.params, put(arrays, layout))

    # Else one program after the other, between the batches
    with contextlib.closing(Ahead(mesh.devices.flat[0])) as ahead:
        for batch in batches:
            shapes = {
                name: jax.ShapeDtypeStruct((1, *array.shape), array.dtype, sharding=layout)
                for name, array in batch.arrays.items()
            }
            ahead.call(scores_over, model.params, shapes)
            ahead.make_room()
        ahead.finish()

    found: dict[tuple[int, int], ChoiceScore] = {}
    for batch, values in in_flight(map(dispatch, batches)):
        parts = (batch.split(np.asarray(value)) for value in values)
        for (row, logprobs), (_, best) in zip(*parts, strict=True):
            for choice, logprob, hits in zip(row.choices, logprobs, best, strict=True):
                loss = -float(logprob.astype(np.float64).mean()) if len(logprob) else math.nan
                found[row.example, choice] = ChoiceScore(loss, bool(hits.all()))
        progress(len(batch.rows))
    return found
