"""Rollouts of reinforcement learning: tokens per second of our engine and of nanochat's.

    python bench/rollouts.py --run HOME/runs/cpu --nanochat CHECKOUT --torch-python PYTHON
    python bench/rollouts.py --tokenizer DIR --depth 4 --nanochat CHECKOUT --torch-python PYTHON

Both get the same weights and problems: those of a run, whose answers end by themselves and call the
calculator, or random weights, whose answers almost all run to --max-tokens. nanochat samples as in
its chat_rl.py, one question after the other, 8 samples at once. Compilation is not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from core import weights, write_model

from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.machine import lanes
from jaxchat.config.schema import ComputeConfig, ModelConfig
from jaxchat.inference.engine import Request
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model.capabilities import choose_compute
from jaxchat.runs.run_dir import read_config
from jaxchat.tasks.arithmetic import ArithmeticTask
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.chat_format import render_prompt
from jaxchat.tokenizer.patterns import SPECIAL_TOKENS

PEER = Path(__file__).resolve().parent / "nanochat_peer" / "rollouts.py"
THEIR_BATCH = 8  # device_batch_size of its chat_rl.py


def main() -> int:
    """Measures both, and prints the ratio."""
    args = parse()
    tokenizer = Tokenizer.load(args.run / "tokenizer" if args.run else args.tokenizer)
    model, params = weights(args, tokenizer)
    task = ArithmeticTask(seed=0)
    prompts = [
        render_prompt(task.problem("train", index).conversation["messages"][:-1], tokenizer)
        for index in range(args.problems)
    ]
    slots = args.slots or (read_config(args.run).eval.slots if args.run else 64)
    engine = make_service(
        params, model, tokenizer, slots=slots, lanes=args.lanes or lanes(),
        compute=choose_compute(ComputeConfig(products=args.products), model, jnp.float32),
    )  # fmt: skip
    rates = {"ours": show("ours", *fastest(args, engine, prompts))}
    del engine
    if args.nanochat:
        found = run_nanochat(args, model, params, tokenizer, prompts)
        rates["nanochat"] = show("nanochat", found["seconds"], found["tokens"])
        print(f"ratio {rates['ours'] / rates['nanochat']:.1f}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="with random weights")
    source.add_argument("--run", type=Path, metavar="FOLDER", help="HOME/runs/NAME")
    parser.add_argument("--stage", default="sft", help="of the run")
    parser.add_argument("--preset", choices=("classic", "modern"), default="classic")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16, help="of each; a multiple of 8")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=0, help="default: the run's, or 64")
    parser.add_argument("--lanes", type=int, default=0, help="engines side by side (as in a run)")
    parser.add_argument("--products", choices=("auto", "plain", "bfloat16"), default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nanochat", type=Path, metavar="CHECKOUT", help="of the preset's time")
    parser.add_argument("--torch-python", default=sys.executable)
    return parser.parse_args()


def fastest(
    args: argparse.Namespace, engine: Service, prompts: list[list[int]]
) -> tuple[float, int]:
    """Seconds and tokens of the fastest repeat."""
    requests = [
        Request(tuple(prompt), args.max_tokens, temperature=1.0, seed=number, n=args.samples)
        for number, prompt in enumerate(prompts)
    ]
    engine.generate(requests)  # compiles
    runs = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        groups = engine.generate(requests)
        seconds = time.perf_counter() - began
        runs.append((seconds, sum(len(c.tokens) for group in groups for c in group)))
    return min(runs)


def run_nanochat(
    args: argparse.Namespace,
    model: ModelConfig,
    params: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
) -> dict[str, Any]:
    """The result of bench/nanochat_peer/rollouts.py."""
    load = {
        "prompts": prompts,
        "samples": args.samples,
        "batch": THEIR_BATCH,
        "max_tokens": args.max_tokens,
        "repeats": args.repeats,
        "specials": {name: tokenizer.special(name) for name in SPECIAL_TOKENS},
    }
    with tempfile.TemporaryDirectory() as folder:
        file, settings, out = (
            Path(folder) / name for name in ("model.npz", "load.json", "out.json")
        )
        write_model(file, model, params)
        settings.write_text(json.dumps(load), encoding="utf-8")
        subprocess.run(
            [args.torch_python, str(PEER), "--nanochat", str(args.nanochat), "--model", str(file),
             "--tokenizer", str(args.run / "tokenizer" if args.run else args.tokenizer),
             "--load", str(settings), "--out", str(out)],
            check=True,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def show(name: str, seconds: float, tokens: int) -> float:
    """Prints a line, and returns the rate."""
    print(f"{name}: {tokens:,} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} a second")
    return tokens / seconds


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
