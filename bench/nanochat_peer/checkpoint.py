"""Makes a tiny checkpoint by running nanochat: tests/golden/nanochat_checkpoint_PRESET.

    python bench/nanochat_peer/checkpoint.py --nanochat CHECKOUT --preset modern --out FOLDER

The tokenizer is trained, pickled and used by nanochat's own code, the checkpoint written and read
again by its checkpoint_manager (September: harness.checkpoint). Embeddings are in bf16, as it had
them on a GPU until then. FOLDER is what it calls its base directory; `logits.npz` holds texts,
their ids and their last LAST logits in fp32.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from load import PRESETS, bfloat16_is_float32, import_gpt, make_model, parameters

MODEL = {"sequence_len": 144, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 24}
VOCABULARY = 281
STEP = 7
OLD_FOLDER = "chatsft_checkpoints/d2"
LAST = 12  # positions whose logits are kept
TEXTS = [
    "The cat sat on the mat and the other cats sat there too.",
    "It's 1234 o'clock; don't they'll say \u2603 na\u00efve\n\n  x",
    " ".join(["the mat on that cat"] * 40),  # longer than a short window, 128
]


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of that time")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ["NANOCHAT_BASE_DIR"] = str(options.out.absolute())
    gpt = import_gpt(options.nanochat)
    import torch
    from nanochat.tokenizer import RustBPETokenizer

    september = options.preset == "september"
    if september:
        from harness.checkpoint import build_model, save_checkpoint
    else:
        from nanochat.checkpoint_manager import build_model, save_checkpoint
    tokenizer = RustBPETokenizer.train_from_iterator(iter(TEXTS * 3), VOCABULARY)
    tokenizer.save(str(options.out / ("datasets/climbmix/tokenizer" if september else "tokenizer")))
    config = {**MODEL, "vocab_size": tokenizer.get_vocab_size()}
    if options.preset != "classic":
        config["window_pattern"] = "SL"
    if september:
        config["short_seq_len"] = 128
    model = lively(gpt, config)
    folder = str(options.out / ("experiments/default/d2/chat" if september else OLD_FOLDER))
    meta = {"step": STEP, "val_bpb": 1.25, "model_config": config}
    save_checkpoint(folder, STEP, model.state_dict(), None, meta)

    phase = () if september else ("eval",)
    model, tokenizer, _ = build_model(folder, STEP, torch.device("cpu"), *phase)
    with bfloat16_is_float32():  # the classic version has its rotary tables in bf16
        if not september:
            model.float()
            size = MODEL["n_embd"] // MODEL["n_head"]
            model.cos, model.sin = model._precompute_rotary_embeddings(model.rotary_seq_len, size)
        result: dict[str, Any] = {}
        for number, text in enumerate(TEXTS):
            ids = tokenizer.encode(text, prepend="<|bos|>")[: MODEL["sequence_len"]]
            with torch.no_grad():
                result[f"logits{number}"] = model(torch.tensor([ids]))[0, -LAST:].numpy()
            result[f"ids{number}"] = np.array(ids)
    np.savez_compressed(options.out / "logits.npz", texts=np.array(TEXTS), **result)
    print(f"{options.out}: {sum(p.stat().st_size for p in options.out.rglob('*.*')):,} bytes")


def lively(gpt: Any, config: dict[str, Any]) -> Any:
    """nanochat's initialisation with noise on everything: zeros would hide what they multiply."""
    import torch

    torch.manual_seed(0)
    model = make_model(gpt, gpt.GPTConfig(**config))
    if hasattr(model, "init_weights"):
        model.init_weights()
    generator = torch.Generator().manual_seed(1)
    for name, p in parameters(model).items():
        noise = torch.randn(p.shape, generator=generator)
        p.data = p.data.float() + (1.0 if name.startswith("lm_head") else 0.2) * noise
        if ("wte" in name or "value_embeds" in name) and not hasattr(gpt, "init_params"):
            p.data = p.data.bfloat16()
    return model


if __name__ == "__main__":
    main()
