"""nanochat's training step, timed in the Python that has torch; bench/train_step.py starts it.

    python bench/nanochat_step.py CHECKOUT CASE STEPS

CASE is measure.Case as JSON, with `rows` and `micro`. Its model, its MuonAdamW and torch.compile as
in its scripts/base_train.py, on random tokens; the result is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import time
from typing import Any


def main(checkout: str, text: str, steps: int) -> None:
    """Measures, and prints the figures."""
    case = json.loads(text)
    os.environ["NANOCHAT_DTYPE"] = case["dtype"]
    os.environ.setdefault("NANOCHAT_BASE_DIR", os.path.join(os.environ.get("TMPDIR", "/tmp"), "nc"))
    sys.path.insert(0, checkout)
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with contextlib.redirect_stdout(sys.stderr):
        model, optimizer = build(case, device)
        flops = model.estimate_flops()
        step = make_step(torch.compile(model, dynamic=False), optimizer, case, device)
        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        step()  # what is compiled only on the second call
        seconds, loss = [], 0.0
        for _ in range(steps):
            began = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    rate = case["batch"] / median
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    figures = {
        "step_ms": 1e3 * median, "tokens_per_second": rate, "model_flops": rate * flops,
        "compile_seconds": max(0.0, first - median), "memory_bytes": memory, "loss": loss,
    }  # fmt: skip
    print(json.dumps(figures))


def build(case: dict[str, Any], device: Any) -> tuple[Any, Any]:
    """nanochat's model and optimizer."""
    import torch
    from nanochat.gpt import GPT, GPTConfig

    width = case["width"] or -(-case["depth"] * 64 // 128) * 128
    heads = max(1, width // 128)
    config = GPTConfig(
        sequence_len=case["seq_len"], vocab_size=case["vocab"], n_layer=case["depth"],
        n_head=heads, n_kv_head=heads, n_embd=width,
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    return model, model.setup_optimizer()


def make_step(model: Any, optimizer: Any, case: dict[str, Any], device: Any) -> Any:
    """The body of its training loop: accumulate, step, wait."""
    import torch

    shape = (case["rows"] // case["micro"], case["micro"], case["seq_len"] + 1)
    tokens = torch.randint(0, case["vocab"], shape, device=device)
    pairs = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]

    def step() -> float:
        for x, y in pairs:
            loss = model(x, y)
            (loss / len(pairs)).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        value = loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(value)

    return step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
