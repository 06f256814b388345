"""Decoding of a model of the paid run's size on a laptop: imported into jaxchat with each kind of
weights, and the same folder in transformers, in turns.

    python bench/laptop.py --python VENV/bin/python --work FOLDER [--depth 20] [--turns 7]

Writes a classic model of random weights as an export for transformers, which `jaxchat import` makes
a run of. A reading is a process of its own: one prompt of 128 tokens, then 128 tokens drawn at
temperature 1, the best of two. VENV has torch and transformers. FOLDER keeps the model (d20: 4 GB).
Prints tokens a second of decoding alone, medians, spreads and the ratio to transformers' best.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OURS = ("float32", "bf16", "int8")
THEIRS = ("float32", "bfloat16")
PEER = """
import sys, time
import torch, transformers
from transformers import AutoModelForCausalLM

folder, dtype, tokens, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
transformers.logging.set_verbosity_error()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
prompt = torch.randint(0, 256, (1, 128), generator=torch.Generator().manual_seed(0))

def seconds(new):
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True,
            top_k=0, max_length=None, max_new_tokens=new, min_new_tokens=new)
    assert out.shape[1] == 128 + new
    return time.perf_counter() - began

seconds(2)
rates = [(tokens - 1) / (seconds(tokens) - seconds(1)) for _ in range(repeats)]
print(max(rates), "torch", torch.__version__, "transformers", transformers.__version__)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--vocab", type=int, default=65_536)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from jaxchat.config.machine import processor

    print(processor(), flush=True)
    work: Path = args.work.resolve()
    name, home = f"d{args.depth}-{args.vocab}", work / "home"
    export = work / name
    if not (home / "runs" / name).is_dir():
        write_model(export, args.depth, args.vocab)
        flags = ("--home", str(home), "--name", name, "--stage", "base")
        subprocess.run([sys.executable, "-m", "jaxchat", "import", str(export), *flags], cwd=HERE)
    sides = [("jaxchat", form) for form in OURS] + [("transformers", form) for form in THEIRS]
    found: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    for turn in range(args.turns):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            if side[0] == "jaxchat":
                rate = our_rate(home, name, side[1], args.tokens)
            else:
                rate = their_rate(args.python, export, side[1], args.tokens)
            found[side].append(rate)
            print(f"turn {turn + 1}: {' '.join(side)} {rate:.2f} tokens/s", flush=True)
    middle = {side: statistics.median(rates) for side, rates in found.items()}
    best = max(middle["transformers", form] for form in THEIRS)
    for side, rates in found.items():
        print(
            f"{name} {' '.join(side):22} {middle[side]:6.2f} tokens/s ({min(rates):.2f} to "
            f"{max(rates):.2f}), {middle[side] / best:.2f} times transformers' best"
        )


def write_model(folder: Path, depth: int, vocab: int) -> None:
    """Writes a classic model of random weights, in bfloat16, as transformers reads it."""
    import jax
    import ml_dtypes
    import numpy as np

    from jaxchat.checkpoints.huggingface import write_huggingface_model
    from jaxchat.config.derive import derive_model
    from jaxchat.model.gpt import init_params
    from jaxchat.tokenizer import Tokenizer
    from jaxchat.tokenizer.patterns import MIN_VOCAB_SIZE

    model = derive_model(depth, "classic", vocab)
    pairs = [bytes(divmod(n, 256)) for n in range(vocab - MIN_VOCAB_SIZE)]
    tokenizer = Tokenizer([*(bytes([n]) for n in range(256)), *pairs])
    params = jax.tree.map(np.asarray, init_params(jax.random.key(0), model))
    folder.mkdir(parents=True, exist_ok=True)
    write_huggingface_model(folder, params, model, tokenizer, "base", np.dtype(ml_dtypes.bfloat16))


def our_rate(home: Path, name: str, form: str, tokens: int) -> float:
    """Tokens a second of `jaxchat bench inference` with weights of a form."""
    file = home / "reading.json"
    command = [sys.executable, "-m", "jaxchat", "bench", "inference", "--home", str(home)]
    command += ["--run", name, "--batch", "1", "--repeats", "2", "--tokens", str(tokens)]
    command += ["--weights", form, "--json", str(file)]
    subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads(file.read_text())["readings"][0]["decode_tokens_per_second"])


def their_rate(python: Path, folder: Path, dtype: str, tokens: int) -> float:
    """Tokens a second of transformers' `generate`, without what reading the prompt takes."""
    command = [str(python), "-c", PEER, str(folder), dtype, str(tokens), "2"]
    huge = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as jaxchat sets it for itself
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | huge
    )
    rate, *versions = done.stdout.split()
    print(" ".join(versions), flush=True)
    return float(rate)


if __name__ == "__main__":
    main()
