"""What weights of fewer bits cost and give on a CPU: bits per byte and equal greedy answers of a
run's model; tokens a second beside an older checkout, in turns.

    python bench/weights.py --run HOME/runs/cpu --stage base --stage rl
    python bench/weights.py --today CHECKOUT --turns 7 --batch 1,8

Speeds are of `jaxchat bench inference --depth 4` in processes of their own, one after the other,
each of which measures the memory's bandwidth first; CHECKOUT needs its compiled `_bpe`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
FORMS = ("float32", "bf16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--stage", action="append", default=[])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--today", type=Path)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--depth", default="4")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from jaxchat.config.machine import processor

    print(processor())
    if args.run:
        for stage in args.stage or ["base"]:
            quality(args.run, stage, args.rows, args.prompts)
    if args.today:
        speed(args)


def quality(run: Path, stage: str, rows: int, prompts: int) -> None:
    """Prints bits per byte with float32 and 8 bits, and the share of equal greedy answers."""
    from jaxchat.config.schema import MODELS
    from jaxchat.evals.bpb import TextRows
    from jaxchat.inference.engine import Engine, Request
    from jaxchat.model.backend import PLAIN
    from jaxchat.model.capabilities import with_weights
    from jaxchat.model.kernels.int8 import quantize_kernels
    from jaxchat.model.kernels.matmul import round_kernels
    from jaxchat.runs.inputs import text_folder, tokenizer_of
    from jaxchat.runs.opening import find_model, load_model

    context, stage = find_model(run.parents[1], run.name, stage, MODELS)
    model, tokenizer = context.config.model, tokenizer_of(context)
    params = load_model(context.root, stage, model)
    held = {"float32": params, "bf16": round_kernels(params), "int8": quantize_kernels(params)}
    text = TextRows(text_folder(context), tokenizer.hash, "heldout", context.config.seed)
    rows = min(rows, len(text))
    asked = [row for batch in text.batches(prompts, 16) for row in batch["tokens"][:, :32].tolist()]
    answers = {}
    for name in FORMS:
        compute = with_weights(PLAIN, name)
        bits = bits_per_byte(
            held[name], text.batches(rows, 16), tokenizer.token_bytes, model, compute
        )
        engine = Engine(params, model, tokenizer, slots=4, compute=compute)
        requests = [Request(tuple(row), max_tokens=64) for row in asked[:prompts]]
        answers[name] = [c.tokens for (c,) in engine.generate(requests)]
        pairs = list(zip(answers[name], answers["float32"], strict=True))
        same, at = [a == b for a, b in pairs], [first_difference(a, b) for a, b in pairs]
        print(
            f"{run.name}/{stage} {name:8} {bits:.5f} bits per byte over {rows} rows; of "
            f"{len(same)} greedy answers {sum(same)} are float32's, and of their tokens "
            f"{sum(at) / sum(map(len, answers['float32'])):.1%} up to the first that differs",
            flush=True,
        )


def bits_per_byte(params: Any, batches: Any, size: Any, model: Any, compute: Any) -> float:
    """`evals.bpb.bits_per_byte`, which takes float32 weights alone."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxchat.model import gpt

    @jax.jit
    def nats(params: Any, tokens: Any, counted: Any) -> Any:
        scores = jax.nn.log_softmax(gpt.forward(params, tokens[:, :-1], model, compute))
        found = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(found * counted)

    total = count = 0.0
    for batch in batches:
        learned = size[batch["tokens"][:, 1:]] * (batch["mask"][:, 1:] > 0)
        total += float(nats(params, batch["tokens"], (learned > 0).astype(np.float32)))
        count += float(learned.sum())
    return total / np.log(2) / count


def first_difference(a: Any, b: Any) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))


def speed(args: argparse.Namespace) -> None:
    """Prints medians and spreads of tokens a second, and of the memory's bandwidth."""
    forms = {name: (HERE, ("--weights", name)) for name in ("auto", "bf16", "int8")}
    sides = {"today": (args.today, ()), **forms}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(args.turns):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for name in order:
            found[name].append(reading(*sides[name], args))
    for place, batch in enumerate(args.batch.split(",")):
        base = 0.0
        for name, turns in found.items():
            rates = [turn["readings"][place]["decode_tokens_per_second"] for turn in turns]
            middle = statistics.median(rates)
            base = base or middle
            width = [turn["bandwidth"] / 1e9 for turn in turns]
            print(
                f"batch {batch} {name:6} {middle:8,.0f} tokens/s ({min(rates):,.0f} to "
                f"{max(rates):,.0f}), {middle / base:.2f} times today's; memory "
                f"{statistics.median(width):.1f} GB/s ({min(width):.1f} to {max(width):.1f})"
            )


def reading(checkout: Path, flags: tuple[str, ...], args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reading.json"
        command = [sys.executable, "-m", "jaxchat", "bench", "inference", "--depth", args.depth]
        command += ["--batch", args.batch, "--json", str(file), *flags]
        subprocess.run(command, cwd=checkout, check=True, capture_output=True)
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return result


if __name__ == "__main__":
    main()
