"""Our loss curve and nanochat's on the same rows.

    python bench/loss_curve.py --text FOLDER --out FOLDER
                               [--nanochat CHECKOUT [--torch-python PYTHON]]
                               [--steps 400] [--eval-every 50] [--from-nanochat]

The setting: modern, d4, width 256, T=512, vocabulary 8192, 8 rows (4096 tokens) a step, fp32. The
last shard of the folder of parquet files is held out, the others train. Rows are made once, as
nanochat's loader makes them, and both models see the same ones in the same order, with nanochat's
rates and schedules for that batch and that many steps. Each begins from its own initial weights;
with --from-nanochat ours runs again from nanochat's, where losses should be nearly equal.

What is already in the folder is not run again: rows.npz, ours.json, nanochat.json, from_nanochat.json.
Times are only worth something when one of them runs alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxchat.config import MeshConfig, ModelConfig
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.model.gpt import init_params
from jaxchat.optim.chain import make_optimizer
from jaxchat.scaling import DATA_RATIO, derive_horizon, derive_model
from jaxchat.sharding import make_mesh, put_batch
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.train.step import init_state, make_train_step

DEPTH, LENGTH, VOCAB, BATCH_ROWS, HELD_OUT_ROWS = 4, 512, 8192, 8, 256
LOADER_BUFFER, LOADER_BATCH = 1000, 128  # documents: those of nanochat's loader


def read_batches(shards: Iterable[Path]) -> Iterator[list[str]]:
    """Documents in lists of at most LOADER_BATCH, each list from one row group."""
    import pyarrow.parquet as pq

    for shard in shards:
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=["text"])["text"].to_pylist()
            for first in range(0, len(texts), LOADER_BATCH):
                yield texts[first : first + LOADER_BATCH]


def pack_like_nanochat(shards: list[Path], tokenizer: Tokenizer, count: int) -> np.ndarray:
    """`count` rows [count, T+1]: best-fit, and where no document fits the shortest is cut off.

    The order of documents and the choice among equals are nanochat's too.
    """
    batches = read_batches(itertools.cycle(shards))
    waiting: list[list[int]] = []
    rows = np.empty((count, LENGTH + 1), np.uint16)
    for row in rows:
        place = 0
        while place < len(row):
            while len(waiting) < LOADER_BUFFER:
                encoded = tokenizer.encode_batch(next(batches))
                waiting += [[tokenizer.bos, *ids] for ids in encoded]
            space = len(row) - place
            lengths = [len(ids) for ids in waiting]
            fitting = [length for length in lengths if length <= space]
            ids = waiting.pop(lengths.index(max(fitting or [min(lengths)])))[:space]
            row[place : place + len(ids)] = ids
            place += len(ids)
    return rows


def make_rows(text: Path, path: Path, steps: int, eval_every: int) -> None:
    """Trains the tokenizer and writes all that both runs read."""
    shards = sorted(text.glob("*.parquet"))
    if len(shards) < 2:
        sys.exit(f"{text} has {len(shards)} parquet files; at least one to train and one held out.")
    *train, held_out = shards
    tokenizer = Tokenizer.train(itertools.chain.from_iterable(read_batches(train)), VOCAB)
    np.savez_compressed(
        path,
        train=pack_like_nanochat(train, tokenizer, steps * BATCH_ROWS),
        heldout=pack_like_nanochat([held_out], tokenizer, HELD_OUT_ROWS),
        token_bytes=tokenizer.token_bytes,
        vocab_size=VOCAB,
        depth=DEPTH,
        batch_rows=BATCH_ROWS,
        steps=steps,
        eval_every=eval_every,
    )
