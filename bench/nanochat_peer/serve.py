"""nanochat's own web server of November 2025, with jaxchat's weights and tokenizer.

    python bench/nanochat_peer/serve.py --nanochat CHECKOUT --model MODEL.npz --tokenizer DIR \\
        --base DIR --port N [--threads N]

MODEL.npz and the tokenizer's folder are as for core.py. They are written into --base as nanochat
keeps a checkpoint, and then its scripts/chat_web.py runs as it is.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np

SPECIALS = (
    "bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start",
    "python_end", "output_start", "output_end",
)  # fmt: skip


def main() -> None:
    """Writes the checkpoint and becomes the server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--port", required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    os.environ |= {"NANOCHAT_BASE_DIR": str(options.base), "CUDA_VISIBLE_DEVICES": ""}
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    write_checkpoint(options.model, options.base / "chatsft_checkpoints" / "d1")
    write_tokenizer(options.tokenizer, options.base / "tokenizer")
    os.chdir(options.nanochat)
    sys.path.insert(0, str(options.nanochat))
    sys.argv = [
        "chat_web.py", "--port", options.port, "--host", "127.0.0.1", "--device-type", "cpu",
        "--dtype", "float32",
    ]  # fmt: skip
    runpy.run_path("scripts/chat_web.py", run_name="__main__")


def write_checkpoint(model: Path, folder: Path) -> None:
    """As nanochat's save_checkpoint does, in its names."""
    import torch

    folder.mkdir(parents=True)
    with np.load(model, allow_pickle=False) as file:
        arrays = dict(file)
    known = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    shape = json.loads(str(arrays.pop("settings")))["model"]
    weights = {
        name.removeprefix("weight/"): torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
    }
    torch.save(weights, folder / "model_000001.pt")
    meta = {"model_config": {name: shape[name] for name in known}}
    (folder / "meta_000001.json").write_text(json.dumps(meta), encoding="utf-8")


def write_tokenizer(source: Path, folder: Path) -> None:
    """The tokenizer as the tiktoken encoding that nanochat unpickles."""
    import tiktoken

    folder.mkdir(parents=True)
    lines = (source / "tokenizer.tiktoken").read_text(encoding="utf-8").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    settings = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    specials = {f"<|{name}|>": len(ranks) + number for number, name in enumerate(SPECIALS)}
    encoding = tiktoken.Encoding(
        "jaxchat", pat_str=settings["pattern"], mergeable_ranks=ranks, special_tokens=specials
    )
    with (folder / "tokenizer.pkl").open("wb") as file:
        pickle.dump(encoding, file)


if __name__ == "__main__":
    main()
