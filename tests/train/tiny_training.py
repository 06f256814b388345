"""A model and rows small enough to train in a test.

As a program, `python tiny_training.py FOLDER`, it trains them slowly, to be killed meanwhile.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxchat.config.derive import derive_horizon, derive_model
from jaxchat.config.schema import ComputeConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from jaxchat.data.loader import RowSource
from jaxchat.data.shard_folder import write_rows
from jaxchat.model import gpt
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train.loop import FitJob, fit

T, VOCAB = 16, 300
TOKENIZER = "hash of no tokenizer"
# every token one byte, but for nine special ones
TOKEN_BYTES = np.r_[np.ones(VOCAB - 9, np.int32), np.zeros(9, np.int32)]

CLASSIC = ModelConfig(vocab_size=VOCAB, sequence_len=T, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)
MODERN = replace(
    derive_model(2, "modern", VOCAB, T), n_head=4, n_kv_head=2, n_embd=32, window_pattern="SL"
)
CLASSIC_OPTIM = OptimConfig(momentum_warmup_steps=5)
MODERN_OPTIM = replace(
    derive_horizon(derive_model(12, "modern", VOCAB), "modern", 12.0).optim,
    warmup_steps=2, momentum_warmup_steps=5,
)  # fmt: skip


def random_params(model: ModelConfig, seed: int = 0) -> Any:
    """Parameters without the zeros of the initialisation, which hide mistakes."""
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        width = leaf.shape[0] if len(leaf.shape) > 1 else 4
        return jax.numpy.asarray(rng.normal(size=leaf.shape) / width**0.5, np.float32)

    return jax.tree.map(draw, shapes)


def write_tiny_rows(folder: Path, count: int, seed: int = 0) -> RowSource:
    """Rows of a language that can be learned: each token follows from the one before."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, VOCAB - 9, count)]
    for _ in range(T):
        surprise = rng.random(count) < 0.1
        rows.append(np.where(surprise, rng.integers(0, VOCAB - 9, count), (rows[-1] * 7 + 3) % 50))
    write_rows(folder, np.stack(rows, 1).astype(np.uint16), None, TOKENIZER)
    return RowSource(folder, TOKENIZER)


# 8 rows a step, in two micro-batches on one device
TRAIN = TrainConfig(
    steps=12, batch_tokens=8 * T, micro_rows=4, eval_every=4, eval_rows=8, save_every=5
)


class SlowRows(RowSource):
    """Rows that take a while to read, so that a step takes long enough to be killed in."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(0.02)
        return super().__getitem__(index)


def tiny_job(folder: Path, rows: type[RowSource] = RowSource, **changes: Any) -> FitJob:
    """A stage in `folder/stage` over the rows in `folder/rows`, which are written if need be."""
    for name, count in (("rows", 50), ("held_out", 20)):
        if not (folder / name).exists():
            write_tiny_rows(folder / name, count, seed=count)
    job = FitJob(
        title="test",
        folder=folder / "stage",
        model=CLASSIC,
        optim=CLASSIC_OPTIM,
        train=TRAIN,
        rows=rows(folder / "rows", TOKENIZER),
        held_out=RowSource(folder / "held_out", TOKENIZER),
        token_bytes=TOKEN_BYTES,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        seed=1,
        compute=ComputeConfig(products="plain"),  # meshes are compared to float32 rounding
    )
    return replace(job, **changes)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # as in conftest.py: the same numbers
    fit(tiny_job(Path(sys.argv[1]), rows=SlowRows), random_params(CLASSIC))
