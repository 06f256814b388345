"""Bits per byte of the text that a run trains on, and of the shard that it holds out (layer 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from jaxchat.config.schema import ModelConfig
from jaxchat.data.loader import HeldOutRows, ShardedRows
from jaxchat.errors import ArtifactError
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.model.backend import Compute, backend
from jaxchat.parallel.mesh import batch_shards
from jaxchat.progress import Progress

TextSplit = Literal["train", "heldout"]


class TextRows:
    """Rows of a split in the order in which training, or its evaluation, takes them."""

    def __init__(self, folder: Path, tokenizer_hash: str, split: TextSplit, seed: int) -> None:
        """Opens a folder of prepared shards. Raises ArtifactError when it is damaged."""
        self.seed = seed
        self._held_out = HeldOutRows(folder, tokenizer_hash) if split == "heldout" else None
        self._train = ShardedRows(folder, tokenizer_hash) if split == "train" else None

    def __len__(self) -> int:
        """Rows of the split; of training text, those of one pass that are prepared."""
        if self._train is not None:
            return self._train.ready()
        return len(self._held_out) if self._held_out is not None else 0

    def batches(self, count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in batches of `size`; what the last one lacks is masked."""
        for first in range(0, count, size):
            places = np.arange(first, first + size)
            tokens = self._take(np.minimum(places, count - 1))
            mask = np.broadcast_to((places < count)[:, None], tokens.shape)
            yield {"tokens": tokens, "mask": mask.astype(np.float32)}

    def _take(self, places: np.ndarray) -> np.ndarray:
        if self._train is not None:
            return self._train.take(places, self.seed)
        assert self._held_out is not None
        held_out = self._held_out
        return np.stack([held_out[int(place)]["tokens"] for place in places])


def bits_of_text(
    params: Any,
    rows: TextRows,
    count: int,
    *,
    token_bytes: np.ndarray,
    model: ModelConfig,
    compute: Compute,
    mesh: Mesh,
    title: str,
) -> float:
    """Bits per byte over the first `count` rows; `params` lie on `mesh` as in training.

    Raises ArtifactError when there are no rows, or they have no byte to predict.
    """
    if not count:
        raise ArtifactError(
            "there are no rows of the text to measure bits per byte on; prepare them with: jaxchat "
            "data prepare"
        )
    tokens, shards = backend(mesh.devices.flat[0].platform).eval_tokens, batch_shards(mesh)
    size = shards * max(1, tokens // model.sequence_len)
    size = min(size, -(-count // shards) * shards)
    with Progress(title, count, "row") as progress:

        def batches() -> Iterator[dict[str, np.ndarray]]:
            for batch in rows.batches(count, size):
                yield batch
                progress.advance(min(size, count - progress.done))

        return bits_per_byte(params, batches(), token_bytes, model, compute, mesh)
