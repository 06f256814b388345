"""How fast nanochat's own engine generates with given weights.

    python bench/nanochat_peer/generate.py --nanochat CHECKOUT --model MODEL.npz --batch 1,8 \\
        --prompt 128 --tokens 128 --repeats 3 --out FILE.json

MODEL.npz is as for `core.py` beside this. FILE.json has for each batch size `prefill_seconds` and
`decode_tokens_per_second`, the best of the repeats: one prompt is read, then n samples of it
are drawn at temperature 1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from core import load_model
from load import bfloat16_is_float32, import_gpt


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    gpt = import_gpt(options.nanochat.resolve())
    import torch
    from nanochat.engine import Engine

    if options.threads:
        torch.set_num_threads(options.threads)
    with np.load(options.model, allow_pickle=False) as file:
        arrays = dict(file)
    with bfloat16_is_float32():  # the classic version's rotary tables and cache
        model = load_model(gpt, json.loads(str(arrays["settings"]))["model"], arrays)
        engine = Engine(model, NoSpecials())
        prompt = np.random.default_rng(0).integers(0, 256, options.prompt).tolist()
        result = {}
        for batch in map(int, options.batch.split(",")):
            runs = [
                measure(engine, prompt, batch, options.tokens) for _ in range(options.repeats + 1)
            ][1:]
            result[str(batch)] = {
                "prefill_seconds": min(prefill for prefill, _ in runs),
                "decode_tokens_per_second": max(rate for _, rate in runs),
            }
    options.out.write_text(json.dumps(result), encoding="utf-8")


class NoSpecials:
    """A tokenizer whose special tokens are never drawn, so that no answer ends early."""

    def encode_special(self, name: str) -> int:
        return -1

    def get_bos_token_id(self) -> int:
        return -1


def measure(engine: Any, prompt: list[int], batch: int, tokens: int) -> tuple[float, float]:
    """Seconds to the first tokens, and tokens a second after them."""
    began = time.perf_counter()
    columns = engine.generate(prompt, num_samples=batch, max_tokens=tokens, temperature=1.0)
    next(columns)
    first = time.perf_counter()
    left = sum(1 for _ in columns)
    return first - began, batch * left / (time.perf_counter() - first)


if __name__ == "__main__":
    main()
