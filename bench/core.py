"""CORE: examples per second beside nanochat's evaluator, and whether both agree.

    python bench/core.py --bundle DIR --tokenizer DIR -a arc_easy --max-problems 50 \\
        --nanochat CHECKOUT --torch-python PYTHON

Both get the same weights: random ones of a depth, or with --run FOLDER those of a run. Ours is
measured twice, with and without compilation. On a busy machine compare the processor's seconds:
nanochat's evaluator and ours use all cores.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from jaxchat.cli.bench import write_model
from jaxchat.config.derive import derive_model
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.schema import ModelConfig
from jaxchat.evals.core.bundle import Bundle, read_bundle
from jaxchat.evals.core.evaluate import evaluate_core
from jaxchat.evals.core.result import TaskResult
from jaxchat.evals.model import EvalModel
from jaxchat.model import gpt
from jaxchat.runs.opening import load_model
from jaxchat.runs.run_dir import read_config
from jaxchat.tokenizer import Tokenizer

PEER = Path(__file__).resolve().parent / "nanochat_peer" / "core.py"


def main() -> int:
    """Measures, and prints a line a task; 1 where the two do not agree."""
    args = parse()
    tokenizer = Tokenizer.load(args.run / "tokenizer" if args.run else args.tokenizer)
    model, params = weights(args, tokenizer)
    bundle = read_bundle(args.bundle)
    theirs = {}
    if args.nanochat:
        theirs = run_nanochat(args, model, params)
    agreed = True
    for task in bundle.select(args.task):
        agreed &= report(args, bundle, task.label, model, params, tokenizer, theirs)
    return 0 if agreed else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="with random weights")
    source.add_argument("--run", type=Path, metavar="FOLDER", help="HOME/runs/NAME")
    parser.add_argument("--stage", default="base", help="of the run")
    parser.add_argument("--preset", choices=("classic", "modern"), default="modern")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("-a", "--task", action="append")
    parser.add_argument("--max-problems", type=int)
    parser.add_argument("--context", type=int, help="default: the model's")
    parser.add_argument("--nanochat", type=Path, metavar="CHECKOUT", help="of the preset's time")
    parser.add_argument("--torch-python", default=sys.executable)
    args = parser.parse_args()
    args.bundle = args.bundle.resolve()
    return args


def weights(args: argparse.Namespace, tokenizer: Tokenizer) -> tuple[ModelConfig, Any]:
    """The model of a run, or a random one that is nowhere zero."""
    if args.run:
        model = read_config(args.run).model
        return model, load_model(args.run, args.stage, model)
    model = derive_model(args.depth, args.preset, tokenizer.vocab_size)
    params = gpt.init_params(jax.random.key(0), model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    head = params["lm_head"]["kernel"]
    return model, {**params, "lm_head": {"kernel": 10 * head}}


def run_nanochat(args: argparse.Namespace, model: ModelConfig, params: Any) -> dict[str, Any]:
    """The result of bench/nanochat_peer/core.py."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "model.npz", Path(folder) / "out.json"
        write_model(file, model, params)
        tokenizer = args.run / "tokenizer" if args.run else args.tokenizer
        command = [
            args.torch_python, str(PEER), "--nanochat", str(args.nanochat), "--model", str(file),
            "--tokenizer", str(tokenizer), "--bundle", str(args.bundle), "--out", str(out),
            "--context", str(args.context or model.sequence_len),
        ]  # fmt: skip
        command += [word for label in args.task or () for word in ("--task", label)]
        command += ["--limit", str(args.max_problems)] if args.max_problems else []
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def report(
    args: argparse.Namespace,
    bundle: Bundle,
    label: str,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    theirs: dict[str, Any],
) -> bool:
    """Prints a task's figures; whether the two agree."""
    seconds = []
    for _ in range(2):
        began, processor = time.perf_counter(), time.process_time()
        result = evaluate_core(
            EvalModel(lambda: params, model, tokenizer), bundle, tasks=[label],
            max_problems=args.max_problems, context=args.context,
        )  # fmt: skip
        seconds.append((time.perf_counter() - began, time.process_time() - processor))
    task = result.tasks[0]
    count, (wall, processor) = len(task.judged), seconds[1]
    line = (
        f"{label}: {count} examples, ours {count / wall:.1f}/s ({count / processor:.1f} a second "
        f"of the processor; {seconds[0][1] - processor:.1f} of them to compile)"
    )
    if label not in theirs:
        print(line, flush=True)
        return True
    other = theirs[label]
    line += (
        f", nanochat {count / other['seconds']:.1f}/s "
        f"({count / other['processor_seconds']:.1f}): ratio {other['seconds'] / wall:.1f} "
        f"({other['processor_seconds'] / processor:.1f})"
    )
    different, largest = compare(task, other["examples"])
    print(f"{line}; {different} predictions differ, losses by {largest:.1e} at most", flush=True)
    return not different and largest < 1e-3


def compare(task: TaskResult, other: list[dict[str, Any]]) -> tuple[int, float]:
    """How many predictions differ, and the largest difference of mean losses."""
    different = sum(
        a.prediction != b["prediction"] for a, b in zip(task.judged, other, strict=True)
    )
    largest = 0.0
    for a, b in zip(task.judged, other, strict=True):
        for loss, theirs in zip(a.losses, b["losses"], strict=True):
            if theirs is None or math.isnan(loss):
                largest = largest if theirs is None and math.isnan(loss) else math.inf
            else:
                largest = max(largest, abs(loss - theirs))
    return different, largest


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
