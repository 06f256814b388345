"""Makes a tiny random model with transformers: tests/golden/transformers_nanochat.

    python bench/nanochat_peer/transformers_model.py --nanochat CHECKOUT --out FOLDER

Its NanoChatForCausalLM with noise on all weights, saved by it in several files; the tokenizer is
trained by nanochat's code and made a tokenizer.json by transformers' converter. `logits.npz` holds
texts, their ids and their last LAST logits in fp32.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint import LAST, TEXTS, VOCABULARY
from load import import_gpt

# Nothing as transformers has it by default, but for the epsilon of the norms, which is 1e-6.
MODEL = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2} | {
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 160,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0},
    "final_logit_softcapping": 11.0,
}


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import_gpt(options.nanochat)
    import torch
    from transformers import NanoChatConfig, NanoChatForCausalLM

    converted = convert_tokenizer()
    options.out.mkdir(parents=True)
    converted.save(str(options.out / "tokenizer.json"))
    torch.manual_seed(0)
    size = converted.get_vocab_size()
    model = NanoChatForCausalLM(NanoChatConfig(vocab_size=size, **MODEL)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += torch.randn(p.shape) * (1.0 if name.startswith("lm_head") else 0.2)
            if name.startswith("model.embed"):
                p /= 100  # so that the norm's epsilon is felt
    model.save_pretrained(options.out, max_shard_size="40KB")
    result: dict[str, Any] = {}
    for number, text in enumerate(TEXTS):
        ids = [converted.token_to_id("<|bos|>"), *converted.encode(text).ids][:160]
        with torch.no_grad():
            result[f"logits{number}"] = model(torch.tensor([ids])).logits[0, -LAST:].numpy()
        result[f"ids{number}"] = np.array(ids)
    np.savez_compressed(options.out / "logits.npz", texts=np.array(TEXTS), **result)
    print(f"{options.out}: {sum(p.stat().st_size for p in options.out.iterdir()):,} bytes")


def convert_tokenizer() -> Any:
    """nanochat's tokenizer of TEXTS as one of `tokenizers`, by way of tiktoken's file."""
    from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, RustBPETokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = RustBPETokenizer.train_from_iterator(iter(TEXTS * 3), VOCABULARY).enc._mergeable_ranks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranks.tiktoken"
        lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
        path.write_text("".join(lines))
        return TikTokenConverter(
            vocab_file=str(path), pattern=SPLIT_PATTERN, extra_special_tokens=SPECIAL_TOKENS
        ).converted()


if __name__ == "__main__":
    main()
