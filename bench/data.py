"""Preparing text and feeding it to training: speed and share of tokens kept, beside nanochat.

    python bench/data.py                                   generated text, 40 MB
    python bench/data.py --text DIR --json result.json     .parquet, .jsonl or .txt files
    python bench/data.py --text DIR --nanochat CHECKOUT --torch-python PYTHON

nanochat's loader tokenizes during training; the Python that has torch times it on Parquet files,
which --text must then contain. Generated text is written as Parquet if pyarrow is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from jaxchat import paths
from jaxchat.config.machine import cores, processor
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.loader import ShardedRows, training_batches
from jaxchat.data.own import InputFile, local_inputs
from jaxchat.data.packing import TextStatistics
from jaxchat.data.shards import Prepared, prepare_shards
from jaxchat.runs.tables import table
from jaxchat.tokenizer import Tokenizer, train_tokenizer

GENERATED = 40_000_000  # bytes, about
SHARDS = 6
PEER = Path(__file__).parent / "nanochat_peer" / "loader.py"
TARGETS = {"prepare": 30e6, "feed": 20e6}  # bytes of text a second; tokens a second


@dataclass(frozen=True)
class Rate:
    """How fast something was."""

    name: str
    tokens_per_second: float
    cpu_tokens_per_second: float
    bytes_per_second: float = 0.0  # of text; 0 where none is read
    kept: float = 0.0  # of the tokens; 0 where none are dropped or kept


def main() -> int:
    """Measures and prints."""
    args = parse()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "text").mkdir()
        if args.text is None:
            generate(work / "text", args.bytes)
        else:
            for path in sorted(args.text.resolve().iterdir()):
                (work / "text" / path.name).symlink_to(path)
        texts = TextFiles([str(work / "text")])
        size = sum(len(text.encode()) for text in texts)
        tokenizer = make_tokenizer(args, texts)
        tokenizer.save(work / "tokenizer")
        print(
            f"{processor()}, {cores()} cores; {args.text or 'generated text'}: "
            f"{size / 1e6:.1f} MB; vocabulary {tokenizer.vocab_size:,}, rows of "
            f"{args.row_tokens:,} tokens",
            flush=True,
        )
        rates, statistics = ours(args, work, tokenizer, size)
        if args.nanochat:
            rates.append(nanochat(args, work))
    print("", *table(cells(rates)), f"\ntraining  {statistics}", sep="\n")
    if args.json:
        paths.write_json(args.json, [vars(rate) for rate in rates])
    return 0


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a folder of text files")
    parser.add_argument("--bytes", type=int, default=GENERATED, help="of generated text")
    parser.add_argument("--tokenizer", type=Path, help="default: one trained on the text")
    parser.add_argument("--vocab-size", type=int, default=32_768, help="of the one trained")
    parser.add_argument("--row-tokens", type=int, default=2_049)
    parser.add_argument("--rows", type=int, default=256, help="of a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="of feeding, each way")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of n preparations")
    parser.add_argument("--nanochat", type=Path, help="a checkout")
    parser.add_argument("--torch-python", default="python3", help="what runs it")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args()


def generate(folder: Path, size: int) -> None:
    """Documents of made-up words, common ones more often, as long as web pages are."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = ["".join(draw.choice(letters, n)) for n in draw.integers(1, 12, 30_000)]
    weights = 1 / np.arange(1, len(words) + 1)
    for shard in range(SHARDS):
        texts, written = [], 0
        while written < size // SHARDS:
            count = int(draw.lognormal(6.2, 1.0)) + 1  # 800 words in the mean
            numbers = draw.choice(len(words), count, p=weights / weights.sum())
            texts.append(" ".join(words[n] for n in numbers) + ".\n")
            written += len(texts[-1])
        write(folder / f"shard_{shard:05d}", texts)


def write(path: Path, texts: list[str]) -> None:
    """As Parquet, or as JSON lines where pyarrow is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        path.with_suffix(".jsonl").write_text("".join(lines), encoding="utf-8")
    else:
        values = pyarrow.table({"text": texts})
        pyarrow.parquet.write_table(values, path.with_suffix(".parquet"), row_group_size=1_024)


def make_tokenizer(args: argparse.Namespace, texts: TextFiles) -> Tokenizer:
    """The one given, or one trained."""
    if args.tokenizer:
        return Tokenizer.load(args.tokenizer)
    return train_tokenizer(iter(texts), args.vocab_size)


def ours(
    args: argparse.Namespace, work: Path, tokenizer: Tokenizer, size: int
) -> tuple[list[Rate], TextStatistics]:
    """Preparing with one worker and with one for each core, then feeding in two ways."""
    inputs = local_inputs(work / "text", args.row_tokens)
    rates = []
    for workers in sorted({1, cores()}):
        out = work / f"shards-{workers}"
        rate, prepared = prepare(args, inputs, tokenizer, size, out, workers)
        rates.append(rate)
    source = ShardedRows(out, tokenizer.hash)
    batches = training_batches(source, args.rows, seed=0)
    rates.append(feed("feed, a batch at once", batches.__getitem__, args))
    single: Any = grain.MapDataset.source(SingleRows(source)).seed(0).shuffle().repeat()
    rates.append(feed("feed, Grain row by row", single.batch(args.rows).__getitem__, args))
    return rates, prepared.training


def prepare(
    args: argparse.Namespace,
    inputs: list[InputFile],
    tokenizer: Tokenizer,
    size: int,
    out: Path,
    workers: int,
) -> tuple[Rate, Prepared]:
    """The fastest of several runs: other load on the machine only slows them down."""
    found = []
    for _ in range(args.repeats):
        paths.remove(out)
        began, cpu = time.perf_counter(), time.process_time()
        prepared = prepare_shards(inputs, tokenizer, args.row_tokens, out, workers=workers)
        found.append((time.perf_counter() - began, time.process_time() - cpu, prepared))
    seconds, cpu, prepared = min(found, key=lambda run: run[0])
    both = prepared.training + prepared.held_out
    rate = Rate(
        f"prepare, {workers} worker{'s' * (workers > 1)}",
        both.tokens / seconds,
        both.tokens / cpu,
        size / seconds,
        both.share_kept,
    )
    return rate, prepared


class SingleRows:
    """A Grain source of single rows, to compare with."""

    def __init__(self, source: ShardedRows) -> None:
        self.rows = np.concatenate(
            [source.shards.array(n) for n in range(source.manifest.validation)]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = self.rows[index].astype(np.int32)
        return {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}


def feed(name: str, batch_of: Callable[[int], Any], args: argparse.Namespace) -> Rate:
    """Batches for some seconds, after a first one that opens and checks files."""
    batch_of(0)
    step = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < args.seconds:
        step += 1
        batch_of(step)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tokens = step * args.rows * args.row_tokens
    return Rate(name, tokens / seconds, tokens / cpu)


def nanochat(args: argparse.Namespace, work: Path) -> Rate:
    """Its loader, on the same text and vocabulary."""
    if not (args.nanochat / "nanochat" / "dataloader.py").is_file():
        raise SystemExit(f"{args.nanochat} is no checkout of nanochat.")
    if len(list((work / "text").glob("*.parquet"))) < 2:
        raise SystemExit("nanochat reads Parquet files; name two or more of them with --text.")
    task = {"work": str(work), "rows": 32, "tokens": args.row_tokens - 1, "seconds": args.seconds}
    done = subprocess.run(
        [args.torch_python, str(PEER), str(args.nanochat.resolve()), json.dumps(task)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"nanochat's loader failed:\n{done.stderr[-2_000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Rate(
        f"nanochat's loader: {found['what']}",
        found["tokens_per_second"],
        found["tokens_per_cpu_second"],
        kept=found["kept"],
    )


def cells(rates: list[Rate]) -> list[tuple[str, ...]]:
    """A row for each, with how many times as fast as nanochat's loader and as the aim."""
    peer = next((r for r in rates if r.name.startswith("nanochat")), None)
    rows = [("", "tokens/s", "tokens/s of CPU", "MB/s", "kept", "aim", "x nanochat")]
    for rate in rates:
        aim = TARGETS.get(rate.name.partition(",")[0])
        reached = (rate.bytes_per_second or rate.tokens_per_second) / aim if aim else 0.0
        rows.append(
            (
                rate.name,
                f"{rate.tokens_per_second / 1e6:.2f}M",
                f"{rate.cpu_tokens_per_second / 1e6:.2f}M",
                f"{rate.bytes_per_second / 1e6:.1f}" if rate.bytes_per_second else "-",
                f"{rate.kept:.1%}" if rate.kept else "-",
                f"x {reached:.1f}" if reached else "-",
                f"{rate.tokens_per_second / peer.tokens_per_second:.1f}" if peer else "-",
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
