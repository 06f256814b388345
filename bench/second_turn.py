"""Time to the first token of a conversation's second turn, with its beginning kept and without.

    python bench/second_turn.py --tokenizer HOME/runs/cpu/tokenizer [--depth 4] [--tokens 1900]

Random weights, and dispatches as a server has them. Every pair is another conversation of random
words: a first turn of --tokens tokens, which ends as a user's message does, then a second of --new
more, the answer and another message. The engines answer in turns, after their programs were
compiled. Prints medians, and the median, least and largest ratio of the pairs; of the first turn,
too, which shows what reading in chunks costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from jaxchat.config.derive import derive_model
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.machine import processor
from jaxchat.config.schema import ComputeConfig
from jaxchat.inference.engine import STEPS, Engine, Request
from jaxchat.model.capabilities import inference_compute
from jaxchat.model.gpt import init_params
from jaxchat.serve.models import dispatch_steps
from jaxchat.tokenizer import Tokenizer


def main() -> int:
    """Measures and prints."""
    args = parse()
    tokenizer = Tokenizer.load(args.tokenizer)
    model = derive_model(args.depth, args.preset, tokenizer.vocab_size)
    params = init_params(jax.random.key(0), model)
    compute = inference_compute(ComputeConfig(), model)
    steps = dispatch_steps(params)
    engines = [
        Engine(
            params, model, tokenizer, slots=4, compute=compute, prefix_bytes=size,
            steps_per_dispatch=steps, first_alone=steps < STEPS,
        )
        for size in (10**9, 0)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, ...]]] = {"first turn": [], "second turn": []}
    ending = [tokenizer.specials["<|user_end|>"], tokenizer.specials["<|assistant_start|>"]]
    for turn in range(args.repeats + 2):  # two that compile
        first, new = (
            [*rng.integers(0, 256, count - len(ending)).tolist(), *ending]
            for count in (args.tokens, args.new)
        )
        for name, tokens in (("first turn", first), ("second turn", first + new)):
            seconds = tuple(first_token(engine, tuple(tokens)) for engine in engines)
            found[name] += [seconds] if turn >= 2 else []
    print(
        f"{processor()}, jax {jax.__version__}, d{args.depth} {args.preset}, {args.repeats} pairs"
    )
    for name, pairs in found.items():
        kept, plain = (1000 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        print(
            f"{name}: {kept:.1f} ms in chunks, {plain:.1f} ms as a whole; ratio "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


def first_token(engine: Engine, tokens: tuple[int, ...]) -> float:
    """Seconds from a request to its first token."""
    began = time.perf_counter()
    job = engine.submit(Request(tokens, max_tokens=1))
    while not job.done:
        engine.step()
    return time.perf_counter() - began


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--preset", default="modern")
    parser.add_argument("--tokens", type=int, default=1_900)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    restart_with_huge_pages()
    raise SystemExit(main())
