"""Training on meshes, for test_mesh.py.

As a program, `python mesh_training.py FOLDER PORT PROCESS DATA FSDP TENSOR`, it is one of two
processes with four devices each that train together through `jax.distributed`.
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tiny_training import (
    CLASSIC,
    CLASSIC_OPTIM,
    MODERN,
    MODERN_OPTIM,
    TOKENIZER,
    TRAIN,
    T,
    random_params,
    tiny_job,
)

from jaxchat.checkpoints.save import Checkpoints, fingerprint
from jaxchat.config.schema import MeshConfig
from jaxchat.data.loader import RowSource
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.signals import Interrupted
from jaxchat.train.loop import FitResult, fit
from jaxchat.train.metrics import read_metrics
from jaxchat.train.step import TrainState, init_state, make_train_step

STEPS, VOCAB, ROWS = 20, 304, 32
# Heads and vocabulary that divide by eight. With two layers the middle one is the last and backout
# scales what is normalised next: its gradient would be nothing but rounding.
WIDE: dict[str, Any] = {"n_head": 16, "n_kv_head": 8, "n_embd": 64, "vocab_size": VOCAB}
MODELS = {"classic": replace(CLASSIC, **WIDE), "modern": replace(MODERN, n_layer=3, **WIDE)}
OPTIMIZERS = {"classic": CLASSIC_OPTIM, "modern": MODERN_OPTIM}


def make_batch(seed: int, accumulation: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """A language that can be learned, in rows whose masks have very different sums."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, VOCAB, rows)]
    for _ in range(T):
        surprise = rng.random(rows) < 0.2
        columns.append(np.where(surprise, rng.integers(0, VOCAB, rows), (columns[-1] * 7) % VOCAB))
    share = np.linspace(0.05, 0.95, rows)[:, None]
    batch = {
        "tokens": np.stack(columns, 1).astype(np.int32),
        "mask": (rng.random((rows, T + 1)) < share).astype(np.float32),
    }
    return {k: v.reshape(accumulation, -1, T + 1) for k, v in batch.items()}


def fresh_state(preset: str, optimizer: Any, mesh: Mesh) -> TrainState:
    return init_state(random_params(MODELS[preset]), optimizer, mesh)


def train(
    preset: str, mesh: MeshConfig, devices: int, accumulation: int
) -> tuple[list[float], Any]:
    """The losses of STEPS steps on the first `devices` devices, and the parameters."""
    over = make_mesh(mesh, jax.devices()[:devices])
    # The rates are low: rounding, which Adam can blow up, must not come back in the loss.
    optimizer = make_optimizer(MODELS[preset], OPTIMIZERS[preset], STEPS, lr_scale=0.1)
    step = make_train_step(MODELS[preset], optimizer, over)
    state, losses = fresh_state(preset, optimizer, over), []
    for number in range(STEPS):
        state, metrics = step(state, put_batch(over, make_batch(number, accumulation)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def summary(folder: Path, result: FitResult) -> dict[str, Any]:
    """What a run logged, and the fingerprint of what came out."""
    records = read_metrics(folder / "stage" / "metrics.jsonl")
    return {
        "losses": [record["loss"] for record in records if "loss" in record],
        "bits_per_byte": [r["bits_per_byte"] for r in records if "bits_per_byte" in r],
        "params": fingerprint(result.params),
    }


class Stopping(RowSource):
    """Rows of which one process reads some, and is then asked to stop."""

    reads = 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        Stopping.reads += 1
        if Stopping.reads == 20:  # four a step
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(index)


def fit_on_one_device(folder: Path) -> dict[str, Any]:
    """The rows are left in the folder, for the two processes."""
    return summary(folder, fit(tiny_job(folder), random_params(CLASSIC)))


def main(folder: Path, port: str, process: int, shape: list[int]) -> None:
    """Trains, forgets the last checkpoint, trains again, is stopped, resumes; writes it all."""
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    mesh, train = make_mesh(MeshConfig(*shape)), replace(TRAIN, micro_rows=1)
    job = replace(tiny_job(folder, mesh=mesh, train=train), folder=folder / "two" / "stage")
    whole = summary(folder / "two", fit(job, random_params(CLASSIC)))
    multihost_utils.sync_global_devices("trained")
    if process == 0:
        shutil.rmtree(job.folder / "checkpoints" / str(TRAIN.steps))
    multihost_utils.sync_global_devices("forgotten")
    resumed = summary(folder / "two", fit(job, random_params(CLASSIC, seed=1)))
    stopped = replace(job, folder=folder / "stopped" / "stage")
    if process == 1:  # the other learns of it from this one
        stopped = replace(stopped, rows=Stopping(folder / "rows", TOKENIZER))
    try:
        fit(stopped, random_params(CLASSIC))
        raise AssertionError("it was not stopped")
    except Interrupted as error:
        code = error.exit_code
    with Checkpoints(stopped.folder / "checkpoints") as checkpoints:
        at = checkpoints.latest()
    continued = summary(
        folder / "stopped", fit(replace(stopped, rows=job.rows), random_params(CLASSIC))
    )
    answer = [whole, resumed, {"code": code, "at": at}, continued]
    (folder / f"result_{process}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(n) for n in sys.argv[4:]])
