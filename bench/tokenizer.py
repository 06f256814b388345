"""Our tokenizer beside rustbpe, Hugging Face tokenizers and tiktoken: time, memory, equal ids.

    python bench/tokenizer.py                              the documentation of this Python, 10 MB
    python bench/tokenizer.py --text DIR --vocab-size 32768 --json result.json
    python bench/tokenizer.py --text DIR --scale           memory and words as the text grows

Every measurement is a process of its own that loads the text first, so nothing is warm and the
operating system reports its peak memory. Peers that are not installed are listed as missing:
pip install rustbpe==0.1.0 tokenizers tiktoken
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.config.machine import cores, peak_memory_bytes, processor
from jaxchat.data import corpus
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.text import Paths
from jaxchat.progress import Progress
from jaxchat.runs.tables import count, table
from jaxchat.tokenizer import SPLIT_PATTERN, Tokenizer, TrainingReport, train_tokenizer
from jaxchat.tokenizer.huggingface import to_oniguruma

OURS, RUSTBPE, HUGGINGFACE, TIKTOKEN = "jaxchat", "rustbpe", "tokenizers", "tiktoken"
TRAINERS = (OURS, RUSTBPE, HUGGINGFACE)
ENCODERS = (OURS, TIKTOKEN, HUGGINGFACE)
THREADS = (1, 2)
BATCH = 1_024  # texts that are encoded at a time
OWN_TEXT = 10_000_000  # characters of this Python's documentation, where no text is given
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
TARGET = 2_000_000_000  # characters that the scaling is extrapolated to

Row = dict[str, Any]


def main() -> int:
    """Runs the requested comparison and prints it."""
    args = parse()
    if args.child:
        print(json.dumps(CHILDREN[args.child["what"]](args.child)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        characters = gather(args.text, work / "text.jsonl")
        result: Row = {
            "processor": processor(),
            "cores": cores(),
            "packages": versions(),
            "text": {"name": args.text or "documentation of this Python", **characters},
            "vocab_size": args.vocab_size,
            "repeats": args.repeats,
        }
        print(head(result), flush=True)
        result |= scale(args, work) if args.scale else compare(args, work)
    if args.json:
        paths.write_json(args.json, result)
    return 0 if result.get("equal", True) else 1


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", help=".txt, .jsonl or .parquet file, or a folder of them")
    parser.add_argument("--vocab-size", type=int, default=32_768)
    parser.add_argument("--repeats", type=int, default=3, help="medians are over n repeats")
    parser.add_argument("--scale", action="store_true", help="train on growing parts instead")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def gather(name: str | None, path: Path) -> Row:
    """Writes the texts as JSON lines for the children; returns their counts."""
    if name is None:
        found = corpus.gather(Paths.of_this_python(), OWN_TEXT)
        texts: Iterator[str] = (document.text for document in found)
    else:
        texts = iter(TextFiles([name]))
    documents = characters = size = 0
    with path.open("w", encoding="utf-8") as file, Progress("gathering text", unit="text") as bar:
        for text in texts:
            encoded = text.encode("utf-8", "replace")  # documentation may hold lone surrogates
            file.write(json.dumps({"text": encoded.decode()}, ensure_ascii=False) + "\n")
            documents, characters, size = documents + 1, characters + len(text), size + len(encoded)
            bar.update(documents)
    return {"documents": documents, "characters": characters, "bytes": size}


def versions() -> dict[str, str]:
    """The peers that are installed."""
    found = {}
    for name in (RUSTBPE, HUGGINGFACE, TIKTOKEN):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def head(result: Row) -> str:
    """The conditions of the measurement: machine, versions, text."""
    text = result["text"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items())
    return (
        f"{result['processor']}, {result['cores']} cores; {packages}\n{text['name']}: "
        f"{text['bytes'] / 1e6:.1f} MB, {text['documents']:,} texts; vocabulary "
        f"{result['vocab_size']:,}"
    )


def child(task: Row, threads: int = 1) -> Row:
    """Runs a task in a process of its own."""
    environment = os.environ | {
        "RAYON_NUM_THREADS": str(threads),  # of rustbpe's and tokenizers' thread pools
        "TOKENIZERS_PARALLELISM": "true",
    }
    command = [sys.executable, __file__, "--child", json.dumps(task | {"threads": threads})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr[-2_000:]}")
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(args: argparse.Namespace, work: Path) -> Row:
    """Training and encoding, ours and the peers', and the proof of equal ids."""
    task = {"work": str(work), "vocab_size": args.vocab_size}
    child(task | {"what": "prepare"})
    base = {who: child(task | {"what": "train", "who": who, "only_load": True}) for who in TRAINERS}
    plan = [("train", who) for who in TRAINERS] + [("encode", who) for who in ENCODERS]
    runs: dict[tuple[str, str, int], list[Row]] = {}
    with Progress("measuring", args.repeats * len(plan) * len(THREADS), "run") as bar:
        # One of each in turn: what else the machine does falls on all alike.
        for _, (what, who), threads in itertools.product(range(args.repeats), plan, THREADS):
            found = child(task | {"what": what, "who": who}, threads)
            runs.setdefault((what, who, threads), []).append(found)
            bar.advance()
    rows = [
        summarize(what, who, threads, found, base.get(who))
        for (what, who, threads), found in runs.items()
    ]
    compare_with_ours(rows)
    proof = child(task | {"what": "prove"})
    print_rows(rows)
    print(proof["summary"])
    return {"rows": rows, "proof": proof, "equal": proof["equal"]}


def summarize(what: str, who: str, threads: int, found: list[Row], base: Row | None) -> Row:
    """Medians over repeats; memory is relative to a process that only loads the text."""
    row: Row = {"what": what, "who": who, "threads": threads}
    if "missing" in found[0]:
        return row | {"missing": found[0]["missing"]}
    row["seconds"] = statistics.median(run["seconds"] for run in found)
    row["all_seconds"] = [run["seconds"] for run in found]
    row["cpu_seconds"] = statistics.median(run["cpu_seconds"] for run in found)
    row["bytes_per_second"] = found[0]["bytes"] / row["seconds"]
    if what == "train" and base:
        row["memory"] = statistics.median(run["peak"] for run in found) - base["peak"]
    return row


def compare_with_ours(rows: list[Row]) -> None:
    """Adds to each row how many times our speed it takes: 3.0 is three times as long."""
    ours = {(r["what"], r["threads"]): r.get("seconds") for r in rows if r["who"] == OURS}
    for row in rows:
        if "seconds" in row:
            row["times_ours"] = row["seconds"] / ours[row["what"], row["threads"]]


def print_rows(rows: list[Row]) -> None:
    """The tables of training and of encoding."""
    for what in ("train", "encode"):
        cells = [(what, "threads", "median", "CPU", "MB/s", "peak memory", "time / ours")]
        for row in (row for row in rows if row["what"] == what):
            name = (row["who"], str(row["threads"]))
            if "missing" in row:
                cells.append((*name, "missing", "-", "-", "-", "-"))
                continue
            memory = f"{row['memory'] / 1e6:,.0f} MB" if "memory" in row else "-"
            cpu = f"{row['cpu_seconds']:.3f}s"
            speed = f"{row['bytes_per_second'] / 1e6:.1f}"
            times = f"{row['times_ours']:.2f}"
            cells.append((*name, f"{row['seconds']:.3f}s", cpu, speed, memory, times))
        print("", *table(cells), sep="\n")
    print("\nencoding: ours into one array, tiktoken into lists, tokenizers into objects")


# ----- what the children do -----


def load_texts(task: Row) -> list[str]:
    """All texts, in memory."""
    return list(TextFiles([str(Path(task["work"]) / "text.jsonl")]))


def run_prepare(task: Row) -> Row:
    """Trains the tokenizer that all encoders use, and writes it for each."""
    work = Path(task["work"])
    tokenizer = train_tokenizer(load_texts(task), task["vocab_size"])
    tokenizer.save(work / "ours")
    tokenizer.to_huggingface(work / "theirs")
    return {}


def run_train(task: Row) -> Row:
    """Trains once; with `only_load`, everything but that."""
    try:
        train = make_trainer(task["who"], task["vocab_size"], task["threads"])
    except ImportError as error:
        return {"missing": str(error), "peak": 0}
    texts = load_texts(task)
    size = sum(len(text.encode()) for text in texts)
    began, cpu = time.perf_counter(), time.process_time()
    if not task.get("only_load"):
        train(texts)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "bytes": size,
        "peak": peak_memory_bytes(),
    }


def make_trainer(who: str, vocab_size: int, threads: int) -> Callable[[list[str]], object]:
    """A function that trains on texts; all learn as many merges. Raises ImportError."""
    mergeable = vocab_size - 9  # our special tokens
    if who == OURS:
        return lambda texts: train_tokenizer(iter(texts), vocab_size, threads=threads)
    if who == RUSTBPE:
        rustbpe = importlib.import_module("rustbpe")
        return lambda texts: rustbpe.Tokenizer().train_from_iterator(
            iter(texts), mergeable, pattern=SPLIT_PATTERN
        )
    tokenizers = importlib.import_module("tokenizers")
    pre = tokenizers.pre_tokenizers
    pattern = tokenizers.Regex(to_oniguruma(SPLIT_PATTERN))
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre.Sequence(
        [pre.Split(pattern, "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=mergeable, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    return lambda texts: model.train_from_iterator(iter(texts), trainer, length=len(texts))


def run_encode(task: Row) -> Row:
    """Encodes all texts once, in batches."""
    try:
        encode = make_encoder(task["who"], Path(task["work"]), task["threads"])
    except ImportError as error:
        return {"missing": str(error)}
    texts = load_texts(task)
    size = sum(len(text.encode()) for text in texts)
    encode(["a first call may set things up"])
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), BATCH):
        encode(texts[start : start + BATCH])
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "bytes": size,
    }


def make_encoder(who: str, work: Path, threads: int) -> Callable[[list[str]], Any]:
    """A function that encodes a batch of texts. Raises ImportError."""
    if who == OURS:
        ours = Tokenizer.load(work / "ours")
        return lambda texts: ours.encode_batch(texts, threads=threads)
    if who == TIKTOKEN:
        encoding = Tokenizer.load(work / "ours").to_tiktoken()
        return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)
    theirs = load_theirs(work)
    return lambda texts: theirs.encode_batch_fast(texts)


def load_theirs(work: Path) -> Any:
    """Our tokenizer as Hugging Face's library reads it. Raises ImportError."""
    tokenizers = importlib.import_module("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(work / "theirs" / "tokenizer.json"))
    theirs.encode_special_tokens = True  # text is text
    return theirs


def run_prove(task: Row) -> Row:
    """Compares the ids of every text with tiktoken's, and with tokenizers' where it is there."""
    work, texts = Path(task["work"]), load_texts(task)
    ours = Tokenizer.load(work / "ours")
    encoders: dict[str, Callable[[list[str]], list[list[int]]]] = {}
    missing = []
    try:
        encoders[TIKTOKEN] = ours.to_tiktoken().encode_ordinary_batch
    except ImportError:
        missing.append(TIKTOKEN)
    try:
        theirs = load_theirs(work)
        encoders[HUGGINGFACE] = lambda batch: [e.ids for e in theirs.encode_batch_fast(batch)]
    except ImportError:
        missing.append(HUGGINGFACE)
    tokens, wrong = 0, dict.fromkeys(encoders, 0)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        ids, offsets = ours.encode_batch(batch)
        tokens += len(ids)
        for name, encode in encoders.items():
            for n, expected in enumerate(encode(batch)):
                wrong[name] += ids[offsets[n] : offsets[n + 1]].tolist() != expected
    parts = [
        f"{n:,} texts differ from {name}" if n else f"{name}: equal" for name, n in wrong.items()
    ]
    parts += [f"{name}: missing, not compared" for name in missing]
    return {
        "equal": not any(wrong.values()),
        "texts": len(texts),
        "tokens": tokens,
        "wrong": wrong,
        "summary": f"ids of {len(texts):,} texts, {tokens:,} tokens: {'; '.join(parts)}",
    }


# ----- how memory grows -----


def scale(args: argparse.Namespace, work: Path) -> Row:
    """Trains on growing parts of the text, streamed, and extrapolates words and memory."""
    task = {"work": str(work), "vocab_size": args.vocab_size, "what": "grow"}
    idle = child(task | {"share": 0.0})["peak"]
    points = [child(task | {"share": share}, cores()) for share in FRACTIONS]
    cells = [("part of the text", "characters", "words", "distinct", "peak memory", "seconds")]
    for share, point in zip(FRACTIONS, points, strict=True):
        point["memory"] = point["peak"] - idle
        cells.append(
            (
                f"{share:.3g}",
                f"{point['characters']:,}",
                f"{point['pretokens']:,}",
                f"{point['distinct']:,}",
                f"{point['memory'] / 1e6:,.0f} MB",
                f"{point['seconds']:.2f}",
            )
        )
    print("", *table(cells), sep="\n")
    estimates = [estimate(points), estimate(points[-2:])]
    for basis, found in zip(("all parts", "the last doubling"), estimates, strict=True):
        print(
            f"{count(TARGET)} characters, from {basis}: distinct words grow as characters^"
            f"{found['exponent']:.3f} to {count(found['distinct'])}, memory to "
            f"{found['memory'] / 1e9:.2f} GB"
        )
    return {"points": points, "idle": idle, "estimates": estimates}


def run_grow(task: Row) -> Row:
    """Trains on the first part of the texts, read as they are asked for."""
    path = Path(task["work"]) / "text.jsonl"
    limit = task["share"] * path.stat().st_size
    files = TextFiles([str(path)])
    characters = 0

    def part() -> Iterator[str]:
        nonlocal characters
        for text in files:  # the first, however long, so that there is something to learn from
            if characters and files.done > limit:
                return
            characters += len(text)
            yield text

    seen: list[TrainingReport] = []
    began = time.perf_counter()
    if limit:
        train_tokenizer(part(), task["vocab_size"], report=seen.append, threads=task["threads"])
    else:
        for _ in files:  # what reading alone takes
            pass
    return {
        "seconds": time.perf_counter() - began,
        "peak": peak_memory_bytes(),
        "characters": characters,
        "pretokens": seen[0].pretokens if seen else 0,
        "distinct": seen[0].distinct if seen else 0,
    }


def estimate(points: list[Row]) -> Row:
    """Distinct words and memory at TARGET characters, from measured points.

    Heaps' law: distinct words are K * characters^b (a line in logarithms). Memory is a line in
    distinct words; both by least squares.
    """
    b, log_k = line([(math.log(p["characters"]), math.log(p["distinct"])) for p in points])
    distinct = math.exp(log_k + b * math.log(TARGET))
    slope, constant = line([(p["distinct"], p["memory"]) for p in points])
    return {"exponent": b, "distinct": distinct, "memory": constant + slope * distinct}


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Slope and constant of the line of least squares; level where all points are at one place."""
    x, y = zip(*points, strict=True)
    if min(x) == max(x):
        return 0.0, statistics.mean(y)
    slope, constant = statistics.linear_regression(x, y)
    return slope, constant


CHILDREN = {
    "prepare": run_prepare,
    "train": run_train,
    "encode": run_encode,
    "prove": run_prove,
    "grow": run_grow,
}

if __name__ == "__main__":
    sys.exit(main())
