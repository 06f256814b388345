"""Bits per byte: the loss in bits over the bytes the predicted tokens stand for.

It does not depend on the tokenizer, so models with different vocabularies can be compared. Special
tokens (0 bytes) and masked ones count neither above nor below; all others count alike, whatever
they weigh in the loss.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals.model import EvalModel
from jaxchat.model import gpt, loss
from jaxchat.model.backend import PLAIN, Compute, backend
from jaxchat.model.loss import cross_entropy
from jaxchat.model.vocabulary import check_ids
from jaxchat.optim.zero import ZeroLayout
from jaxchat.parallel.mesh import batch_shards, make_mesh, put, put_batch, replicated
from jaxchat.parallel.spmd import mesh_compute, over_rows
from jaxchat.progress import Progress

AHEAD = 2  # programs, so that a device never waits for Python; many more would fill its memory
TextSplit = Literal["train", "heldout"]
Result = TypeVar("Result")

_NO_BYTE = "bits per byte cannot be measured: in the held-out rows every token is masked or special"


@functools.cache
def _sums_over(mesh: Mesh, model: ModelConfig, compute: Compute) -> Any:
    """The jitted (params, bytes of each token [V]), batch [1, B, T+1] -> (nats, bytes)."""
    zero = ZeroLayout.of_model(mesh, model)
    gather = zero.model_gather()
    compute = mesh_compute(mesh, model, compute)

    def local(
        weights: tuple[Any, jax.Array], batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        params, token_bytes = gather(weights[0]), weights[1]
        tokens, targets = batch["tokens"][0], batch["tokens"][0, :, 1:]
        learned = batch["mask"][0, :, 1:] > 0
        size = token_bytes[targets].astype(jnp.float32) * learned.astype(jnp.float32)
        counted = (size > 0).astype(jnp.float32)
        x = gpt.features(params, tokens[:, :-1], model, compute)
        kernel, softcap = params["lm_head"]["kernel"], model.softcap
        nats, _ = cross_entropy(x, kernel, targets, counted, softcap=softcap, compute=compute)
        sums = nats, jnp.sum(size)
        return jax.lax.psum(sums, zero.axes) if zero.axes else sums

    return jax.jit(over_rows(local, mesh, (zero.stored, P()), (P(), P())))


def bits_per_byte(
    params: Any,
    batches: Iterable[dict[str, Any]],
    token_bytes: np.ndarray,
    model: ModelConfig,
    compute: Compute = PLAIN,
    mesh: Mesh | None = None,
) -> float:
    """Bits per byte over batches of `tokens` and `mask`, each [B, T+1].

    `token_bytes` [V] is the number of bytes of each token, 0 for special ones. The rows are split
    over `mesh`, where the parameters lie as in training; with several processes each gives its own.
    Without a mesh all is on the first device. Where training rounds what it multiplies, to bfloat16
    or fp8, this does not: what the weights are worth is measured without it.

    Raises ArtifactError when no byte is predicted at all; `check_bytes` finds that out beforehand.
    """
    mesh = mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    sums_over = _sums_over(mesh, model, compute.unrounded())
    weights = params, put(np.asarray(token_bytes, np.int32), replicated(mesh))

    def one(batch: dict[str, Any]) -> dict[str, np.ndarray]:
        check_ids(np.asarray(batch["tokens"]), model.vocab_size, "a row of text")
        return {name: np.asarray(rows)[None] for name, rows in batch.items()}

    micro = map(one, batches)
    dispatched = (sums_over(weights, put_batch(mesh, batch)) for batch in micro)
    sums = [(float(nats), float(size)) for nats, size in in_flight(dispatched)]
    nats, size = (math.fsum(column) for column in zip(*sums, strict=True)) if sums else (0.0, 0.0)
    if not size:
        raise ArtifactError(f"{_NO_BYTE}.")
    return loss.bits_per_byte(nats, size)


def check_bytes(
    batches: Iterable[dict[str, Any]], token_bytes: np.ndarray, advice: str = ""
) -> None:
    """Raises ArtifactError when the batches have no byte to predict, before time is spent.

    `advice` ends the message: it depends on the source of the rows.
    """
    if not any(
        np.any(token_bytes[batch["tokens"][:, 1:]] * batch["mask"][:, 1:]) for batch in batches
    ):
        raise ArtifactError(f"{_NO_BYTE}{advice and f'; {advice}'}.")


def in_flight(results: Iterator[Result], ahead: int = AHEAD) -> Iterator[Result]:
    """The same results, each yielded when `ahead` more have been dispatched.

    The reader of a result waits for it, so never more than `ahead` + 1 programs run. On virtual
    devices of a CPU hundreds of programs at once, each with a collective, block each other until
    XLA ends the process.
    """
    waiting = deque(itertools.islice(results, ahead))
    for result in results:
        waiting.append(result)
        yield waiting.popleft()
    yield from waiting


class Rows(Protocol):
    """Rows of text that bits per byte are measured on."""

    def batches(self, count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in batches of `size`; what the last one lacks is masked."""


class TextRows:
    """Rows of a split in the order in which training, or its evaluation, takes them."""

    def __init__(self, folder: Path, tokenizer_hash: str, split: TextSplit, seed: int) -> None:
        """Opens a folder of prepared shards. Raises ArtifactError when it is damaged."""
        from jaxchat.data.loader import HeldOutRows, ShardedRows  # with grain: serving has no use

        opened = ShardedRows if split == "train" else HeldOutRows
        self._rows, self._seed = opened(folder, tokenizer_hash), seed

    def __len__(self) -> int:
        """Rows of the split; of training text, those of one pass that are prepared."""
        return self._rows.ready()

    def batches(self, count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in batches of `size`; what the last one lacks is masked."""
        for first in range(0, count, size):
            places = np.arange(first, first + size)
            tokens = self._rows.take(np.minimum(places, count - 1), self._seed)
            mask = np.broadcast_to((places < count)[:, None], tokens.shape)
            yield {"tokens": tokens, "mask": mask.astype(np.float32)}


def bits_of_text(model: EvalModel, rows: Rows, count: int, title: str) -> float:
    """Bits per byte over the first `count` rows, split over the model's mesh.

    Raises ArtifactError when there are no rows, or they have no byte to predict.
    """
    if not count:
        raise ArtifactError(
            "there are no rows of the text to measure bits per byte on; prepare them with: jaxchat "
            "data prepare"
        )
    mesh = model.mesh or make_mesh(MeshConfig(), jax.devices()[:1])
    tokens, shards = backend(mesh.devices.flat[0].platform).eval_tokens, batch_shards(mesh)
    size = shards * max(1, tokens // model.config.sequence_len)
    size = min(size, -(-count // shards) * shards)
    with Progress(title, count, "row") as progress:

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for batch in rows.batches(count, size):
                yield batch
                progress.advance(min(size, count - progress.done))

        return bits_per_byte(
            model.params, batches(), model.tokenizer.token_bytes, model.config, model.compute, mesh
        )
