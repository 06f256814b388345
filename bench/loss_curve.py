"""Our loss curve and nanochat's on the same rows.

    python bench/loss_curve.py --text FOLDER --out FOLDER
                               [--nanochat CHECKOUT [--torch-python PYTHON]]
                               [--steps 400] [--eval-every 50] [--from-nanochat 400]
                               [--products bfloat16]

The setting: modern, d4, width 256, T=512, vocabulary 8192, 8 rows (4096 tokens) a step, fp32. The
last shard of the folder of parquet files is held out, the others train. Rows are made once, as
nanochat's loader makes them, and both models see the same ones in the same order, with nanochat's
rates and schedules for that batch and that many steps. Each begins from its own initial weights;
with --from-nanochat N ours runs N steps again from nanochat's, where losses are nearly equal.

What is already in the folder is not run again (rows.npz, init.npz and a .json for each curve).
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
import jax.numpy as jnp
import numpy as np

from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.checkpoints.tensors import to_params
from jaxchat.config.derive import DATA_RATIO, derive_horizon, derive_model
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.schema import ComputeConfig, MeshConfig, ModelConfig
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.capabilities import choose_compute
from jaxchat.model.gpt import init_params
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.tokenizer import Tokenizer, train_tokenizer
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
                ids, starts = tokenizer.encode_batch(next(batches), prepend="<|bos|>")
                waiting += [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]
            space = len(row) - place
            lengths = [len(ids) for ids in waiting]
            fitting = [length for length in lengths if length <= space]
            chosen = waiting.pop(lengths.index(max(fitting or [min(lengths)])))[:space]
            row[place : place + len(chosen)] = chosen
            place += len(chosen)
    return rows


def make_rows(text: Path, path: Path, steps: int, eval_every: int) -> None:
    """Trains the tokenizer and writes all that both runs read."""
    shards = sorted(text.glob("*.parquet"))
    if len(shards) < 2:
        sys.exit(f"{text} has {len(shards)} parquet files; at least one to train and one held out.")
    *train, held_out = shards
    tokenizer = train_tokenizer(itertools.chain.from_iterable(read_batches(train)), VOCAB)
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


def setting_of(rows: Any, compute: Compute) -> tuple[ModelConfig, Any]:
    """The model, and its optimizer with nanochat's rates for this batch and this many steps."""
    model = derive_model(int(rows["depth"]), "modern", int(rows["vocab_size"]), LENGTH)
    batch = int(rows["batch_rows"]) * LENGTH
    optim = derive_horizon(model, "modern", DATA_RATIO["modern"], batch).optim
    return model, make_optimizer(model, optim, int(rows["steps"]), muon_dtype=compute.muon_dtype)


def train(
    rows: Any, name: str, params: Any, steps: int, compute: Compute = PLAIN
) -> dict[str, Any]:
    """Loss of every step, bits per byte every so often, seconds of every step."""
    model, optimizer = setting_of(rows, compute)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    run_step = make_train_step(model, optimizer, mesh, compute)
    state = init_state(params, optimizer)
    size = int(rows["batch_rows"])
    curve: dict[str, Any] = {"name": name, "loss": [], "bpb": {}, "seconds": []}
    for step in range(steps + 1):
        if step % int(rows["eval_every"]) == 0 or step == steps:
            held_out = batches(rows["heldout"], size)
            bits = bits_per_byte(state.params, held_out, rows["token_bytes"], model)
            curve["bpb"][str(step)] = bits
            print(f"{name}, step {step}: {bits:.4f} bits per byte", flush=True)
        if step == steps:
            break
        begun = time.perf_counter()
        (batch,) = batches(rows["train"][step * size :][:size], size)
        state, metrics = run_step(state, put_batch(mesh, {k: v[None] for k, v in batch.items()}))
        curve["loss"].append(float(metrics["loss"]))
        curve["seconds"].append(time.perf_counter() - begun)
        print(f"{name}, step {step}: loss {curve['loss'][-1]:.4f}", flush=True)
    return curve


def batches(rows: np.ndarray, size: int) -> list[dict[str, np.ndarray]]:
    """Rows [N, T+1] as batches of `size`; every token counts."""
    tokens = rows.astype(np.int32)
    ones = np.ones((size, tokens.shape[1]), np.float32)
    return [{"tokens": tokens[i : i + size], "mask": ones} for i in range(0, len(tokens), size)]


def nanochat_params(path: Path, model: ModelConfig) -> Any:
    """nanochat's initial weights as our parameters."""
    with np.load(path, allow_pickle=False) as file:
        return to_params({name: file[name] for name in file.files}, model, nanochat_name)


def show(curves: list[dict[str, Any]], eval_every: int) -> None:
    """A table a row an evaluation, and a plot of the training losses."""
    print(f"\n{'step':>5}" + "".join(f"{c['name'] + ' loss':>22}{'bpb':>9}" for c in curves))
    steps = sorted({int(step) for c in curves for step in c["bpb"]})
    for step in steps:
        line = f"{step:5}"
        for curve in curves:
            near = curve["loss"][max(0, step - eval_every // 2) : step]
            bits = curve["bpb"].get(str(step))
            loss = f"{sum(near) / len(near):.4f}" if near and bits else ""
            line += f"{loss:>22}{f'{bits:.4f}' if bits else '':>9}"
        print(line)
    print(f"(the loss is the mean of the {eval_every // 2} steps before)")
    for curve in curves:
        half = sorted(curve["seconds"])[len(curve["seconds"]) // 2]
        print(f"{curve['name']}: median {half:.2f} s a step")
    print("\n".join(plot(curves)))


def plot(curves: list[dict[str, Any]], width: int = 72, height: int = 16) -> list[str]:
    """Training losses over steps, each curve by a digit; * where they meet."""
    longest = max(len(curve["loss"]) for curve in curves)
    low = min(min(curve["loss"]) for curve in curves)
    high = max(max(curve["loss"]) for curve in curves)
    grid = [[" "] * width for _ in range(height)]
    for number, curve in enumerate(curves, 1):
        for column in range(width):
            span = curve["loss"][column * longest // width : (column + 1) * longest // width]
            if span:
                share = (sum(span) / len(span) - low) / (high - low or 1.0)
                cell = grid[round((1 - share) * (height - 1))]
                cell[column] = str(number) if cell[column] == " " else "*"
    legend = ", ".join(f"{n} {curve['name']}" for n, curve in enumerate(curves, 1))
    lines = [f"loss {high:.2f}", *("|" + "".join(row) for row in grid)]
    return [*lines, f"     {low:.2f} {'-' * (width - 10)} step {longest}", f"     {legend}"]


def main() -> None:
    """Parses the command line, runs the missing curves, shows all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--text", type=Path, required=True, help="parquet shards, the last held out"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows and curves")
    parser.add_argument("--nanochat", type=Path, help="a checkout of July 2026")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--from-nanochat", type=int, default=0, metavar="N", help="ours, N steps")
    parser.add_argument(
        "--products", choices=("plain", "bfloat16"), default="plain",
        help="ours, as compute.products; each has a curve of its own",
    )  # fmt: skip
    options = parser.parse_args()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "rows.npz").exists():
        make_rows(options.text, folder / "rows.npz", options.steps, options.eval_every)
    with np.load(folder / "rows.npz", allow_pickle=False) as file:
        rows = {name: file[name] for name in file.files}
    model, _ = setting_of(rows, PLAIN)
    name = "ours" if options.products == "plain" else f"ours {options.products}"
    ours = folder / f"{name.replace(' ', '_')}.json"
    if not ours.exists():
        compute = choose_compute(ComputeConfig(products=options.products), model, jnp.float32)
        params = init_params(jax.random.key(42), model)
        write(ours, train(rows, name, params, int(rows["steps"]), compute))
    if options.nanochat and not (folder / "nanochat.json").exists():
        peer = Path(__file__).parent / "nanochat_peer" / "train.py"
        paths = [str(folder / name) for name in ("rows.npz", "nanochat.json", "init.npz")]
        where = [str(peer), str(options.nanochat), *paths[:2], "--init", paths[2]]
        subprocess.run([options.torch_python, *where], check=True)
    if options.from_nanochat and not (folder / "from_nanochat.json").exists():
        params = nanochat_params(folder / "init.npz", model)
        curve = train(rows, "ours from its", params, options.from_nanochat)
        write(folder / "from_nanochat.json", curve)
    names = ("nanochat.json", "ours.json", "ours_bfloat16.json", "from_nanochat.json")
    curves = [json.loads((folder / n).read_text()) for n in names if (folder / n).exists()]
    show(curves, int(rows["eval_every"]))


def write(path: Path, curve: dict[str, Any]) -> None:
    """One curve as JSON."""
    path.write_text(json.dumps(curve), encoding="utf-8")


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
