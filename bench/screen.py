"""Runs what docs/screening.md has registered, row by row, and appends to bench/screening.jsonl.

    nice -n 19 python bench/screen.py --text FOLDER --work FOLDER [--minutes 90]

Rows that are there are skipped, so the same command resumes; one that was killed is made again. The
folder of parquet files is the text, the last file is held out. The folder --work keeps tokenizers,
packed rows and compiled programs. Bits per byte do not depend on how busy the machine is; the
seconds of a row do, so its load stands beside them.

What no setting does is a prototype: see bench/screen_prototypes.py; the mean of the last parameters
is taken here.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import itertools
import json
import math
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from screen_plan import BASELINES, STEPS, VOCAB, Row, rows
from screen_prototypes import crop, prototype

from jaxchat.config.derive import flops_per_token
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.schema import MeshConfig, ModelConfig, OptimConfig
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.packing import pack_text
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.evals.documents import DocumentRows
from jaxchat.model import gpt
from jaxchat.model.backend import Compute
from jaxchat.optim import optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.tokenizer import Tokenizer, train_tokenizer
from jaxchat.train.step import init_state, make_train_step

RESULTS = Path(__file__).with_name("screening.jsonl")
HELD_OUT_BYTES, EVAL_ROWS = 250_000, 16
TAIL = 0.1  # of the steps
EQUAL_BYTES = ("vocab4k", "vocab16k")


class Text(NamedTuple):
    """The text as a variant reads it."""

    tokenizer: Tokenizer
    rows: np.ndarray  # [N, T+1]
    bytes_of_token: float
    held_out: DocumentRows


class Corpus:
    """The documents, and what was made of them for each vocabulary."""

    def __init__(self, text: Path, work: Path) -> None:
        *train, held_out = sorted(text.glob("*.parquet"))
        self.work = work
        self.documents = list(TextFiles.of(train))
        texts = list(TextFiles.of([held_out]))
        ends = list(itertools.accumulate(len(text.encode()) for text in texts))
        self.held_out = texts[: bisect.bisect_left(ends, HELD_OUT_BYTES) + 1]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def read(self, vocab_size: int, tools: bool, length: int, cropped: bool) -> Text:
        """Tokenizer and rows, made once."""
        place = self.work / f"tokenizer-{vocab_size}-{tools}"
        if not place.exists():
            train_tokenizer(iter(self.documents), vocab_size, tools=tools).save(place)
        tokenizer = Tokenizer.load(place)
        ids, starts = tokenizer.encode_batch(self.documents, prepend="<|bos|>")
        size = sum(len(text.encode()) for text in self.documents)
        made = crop(ids, starts, length + 1) if cropped else pack_text(
            ids, starts, length + 1, tokenizer.bos
        )[0]  # fmt: skip
        held_out = DocumentRows(self.held_out, tokenizer, length)
        return Text(tokenizer, made, size / (len(ids) - len(self.documents)), held_out)


@functools.lru_cache(maxsize=4)
def step_of(variant: str, model: ModelConfig, optim: OptimConfig, steps: int, compute: Compute
            ) -> tuple[Any, Any]:  # fmt: skip
    """(optimizer, jitted step), the same for all seeds."""
    del variant  # its prototype is in place while the step is traced
    made = optimizer.make_optimizer(model, optim, steps)
    return made, make_train_step(model, made, make_mesh(MeshConfig(), jax.devices()[:1]), compute)


def make(row: Row, corpus: Corpus) -> dict[str, Any]:
    """Trains and measures a row; its record."""
    began, config = time.monotonic(), row.config()
    model, variant = config.model, row.variant
    text = corpus.read(
        model.vocab_size, config.tokenizer.tool_tokens, model.sequence_len, variant == "cropped"
    )
    steps = config.base.steps
    if variant in EQUAL_BYTES:
        usual = corpus.read(VOCAB, True, model.sequence_len, False)
        steps = round(steps * usual.bytes_of_token / text.bytes_of_token)
    elif variant not in ("half", *BASELINES, *BASELINES.values()):
        usual_model = Row("baseline", row.depth, 0, ('run.preset="september"',)).config().model
        steps = round(STEPS[row.depth] * flops_per_token(usual_model) / flops_per_token(model))
    with prototype(variant, text.tokenizer.bos) as compute:
        params, mean, loss = train(row, config, text, steps, compute)
        tokens = steps * config.base.batch_tokens
        return {
            "variant": variant,
            "depth": row.depth,
            "seed": row.seed,
            "settings": list(row.settings),
            "steps": steps,
            "tokens": tokens,
            "flops": flops_per_token(model) * tokens,
            "text_bytes": round(tokens * text.bytes_of_token),
            "loss": _number(loss),
            "bits_per_byte": measure(params, model, text, compute),
            **({"tail": measure(mean, model, text, compute)} if variant == "baseline" else {}),
            "seconds": round(time.monotonic() - began, 1),
            "load": round(os.getloadavg()[0], 1),
        }


def train(
    row: Row, config: Any, text: Text, steps: int, compute: Compute
) -> tuple[Any, Any, float]:
    """The parameters at the end, their mean over the last steps, and the mean loss of those."""
    model, size = config.model, config.base.batch_tokens // config.model.sequence_len
    order = np.random.default_rng(row.seed).permutation(len(text.rows))
    if steps * size > len(order):
        raise ValueError(f"{steps} steps of {size} rows need more text than {len(order)} rows.")
    made, run_step = step_of(row.variant, model, config.optim, steps, compute)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    params = gpt.init_params(jax.random.key(row.seed), model)
    state = init_state(jax.tree.map(jnp.copy, params), made)
    total, losses = jax.tree.map(jnp.zeros_like, params), list[float]()
    tail = max(1, round(TAIL * steps))
    for step in range(steps):
        tokens = text.rows[order[step * size :][:size]].astype(np.int32)[None]
        batch = {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}
        state, metrics = run_step(state, put_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
        if step >= steps - tail:
            total = jax.tree.map(jnp.add, total, state.params)
    mean = jax.tree.map(lambda x: x / tail, total)
    return state.params, mean, math.fsum(losses[-tail:]) / tail


def measure(params: Any, model: ModelConfig, text: Text, compute: Compute) -> float | None:
    """Bits per byte of the held-out documents; None: not finite."""
    batches = text.held_out.batches(len(text.held_out), EVAL_ROWS)
    return _number(bits_per_byte(params, batches, text.tokenizer.token_bytes, model, compute))


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def read_results() -> list[dict[str, Any]]:
    """The records that are there."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def bits_of(records: Sequence[dict[str, Any]]) -> dict[tuple[str, int, int], float]:
    """Bits per byte by (variant, depth, seed); infinite: it diverged. `tail` is a variant, too."""
    found = {}
    for record in records:
        for field, name in (("bits_per_byte", record["variant"]), ("tail", "tail")):
            if field in record:
                value = math.inf if record[field] is None else record[field]
                found[name, record["depth"], record["seed"]] = value
    return found


def main() -> None:
    """Makes the missing rows until none is missing or the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="parquet files, the last held out")
    parser.add_argument("--work", type=Path, required=True, help="what may be deleted afterwards")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after these")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.work / "compiled"))
    end = time.monotonic() + 60 * options.minutes
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            check=False, cwd=RESULTS.parent).stdout.strip()  # fmt: skip
    records, corpus = read_results(), Corpus(options.text, options.work)
    settings = {(r["variant"], r["depth"], r["seed"]): tuple(r["settings"]) for r in records}
    bits = bits_of(records)
    for row in rows(bits):
        if row.key in bits:
            if settings[row.key] != row.settings:
                raise SystemExit(f"{row.key} was made with other settings; remove its line.")
            continue
        if time.monotonic() > end:
            print("The time is over; the same command resumes.")
            return
        record = {**make(row, corpus), "commit": commit, "jax": jax.__version__}
        with RESULTS.open("a") as file:
            file.write(f"{json.dumps(record)}\n")
        bits.update(bits_of([record]))
        settings[row.key] = row.settings
        print(f"{row.key}: {record['bits_per_byte']} bits per byte, {record['steps']} steps, "
              f"{record['seconds']} s, load {record['load']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    restart_with_huge_pages()
    main()
