"""How fast nanochat's own engine samples rollouts with given weights, its calculator in the loop.

    python bench/nanochat_peer/rollouts.py --nanochat CHECKOUT --model MODEL.npz --tokenizer DIR \\
        --load LOAD.json --out FILE.json

MODEL.npz is as for `core.py` beside this, the tokenizer a folder of jaxchat's. LOAD.json has
`prompts` (lists of ids), `samples` of each, `batch` (drawn at once, as in its chat_rl.py),
`max_tokens`, `repeats` and `specials` (name -> id). FILE.json gets `seconds` of the fastest repeat
and the `tokens` of that.
"""

from __future__ import annotations

import argparse
import base64
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
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--load", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    gpt = import_gpt(options.nanochat.resolve())
    import torch
    from nanochat.engine import Engine

    load = json.loads(options.load.read_text(encoding="utf-8"))
    with np.load(options.model, allow_pickle=False) as file:
        arrays = dict(file)
    with bfloat16_is_float32(), torch.no_grad():  # the classic version's tables and cache
        model = load_model(gpt, json.loads(str(arrays["settings"]))["model"], arrays)
        engine = Engine(model, TheirTokenizer(options.tokenizer, load["specials"]))
        sample(engine, load | {"prompts": load["prompts"][:1]})  # warm
        runs = [sample(engine, load) for _ in range(load["repeats"])]
    seconds, tokens = min(runs)
    result = {"seconds": seconds, "tokens": tokens}
    options.out.write_text(json.dumps(result), encoding="utf-8")


class TheirTokenizer:
    """The tokenizer interface that its engine uses, with jaxchat's ids."""

    def __init__(self, folder: Path, specials: dict[str, int]) -> None:
        import tiktoken

        text = (folder / "tokenizer.tiktoken").read_text(encoding="utf-8")
        pairs = (line.split() for line in text.splitlines())
        settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.specials = specials
        self.encoding = tiktoken.Encoding(
            "jaxchat",
            pat_str=settings["pattern"],
            mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
            special_tokens=specials,
        )

    def encode_special(self, name: str) -> int:
        return self.specials[name]

    def get_bos_token_id(self) -> int:
        return self.specials["<|bos|>"]

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)


def sample(engine: Any, load: dict[str, Any]) -> tuple[float, int]:
    """Seconds and tokens of all rollouts: question by question, `batch` samples at once."""
    began, tokens = time.perf_counter(), 0
    for number, prompt in enumerate(load["prompts"]):
        for part in range(0, load["samples"], load["batch"]):
            found, _ = engine.generate_batch(
                prompt, num_samples=load["batch"], max_tokens=load["max_tokens"], temperature=1.0,
                seed=1_000 * number + part,
            )  # fmt: skip
            lengths = [len(ids) - len(prompt) for ids in found]
            # its lists lack the token that ended an answer
            tokens += sum(length + (length < load["max_tokens"]) for length in lengths)
    return time.perf_counter() - began, tokens


if __name__ == "__main__":
    main()
