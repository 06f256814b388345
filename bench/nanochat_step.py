"""nanochat's training step, timed in the Python that has torch.

    python bench/nanochat_step.py CHECKOUT CASE STEPS [GO]

CASE is measure.Case as JSON, with `rows` and `micro`; bench/train_step.py and bench/gpu.py start
it. Its model, its optimizers and torch.compile as in its scripts/base_train.py, on random tokens;
the result is one line of JSON. CHECKOUT is of 2026, or of November 2025 (with autocast, two
optimizers and clipped gradients). With GO, it makes its first steps, writes GO.ready, and measures
once there is a file GO.
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


def main(checkout: str, text: str, steps: int, go: str = "") -> None:
    """Measures, and prints the figures."""
    case = json.loads(text)
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ["NANOCHAT_DTYPE"] = case["dtype"]
    os.environ.setdefault("NANOCHAT_BASE_DIR", os.path.join(os.environ.get("TMPDIR", "/tmp"), "nc"))
    sys.path.insert(0, checkout)
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    with contextlib.redirect_stdout(sys.stderr):
        model, optimizers = build(case, device)
        flops = model.estimate_flops()
        step = make_step(torch.compile(model, dynamic=False), optimizers, case, device)
        began = time.perf_counter()
        step()
        first = time.perf_counter() - began
        step()  # what is compiled only on the second call
        if go:
            wait_for(go)
            step()
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
        "spread_ms": 1e3 * (max(seconds) - min(seconds)),
    }  # fmt: skip
    print(json.dumps(figures))


def wait_for(go: str) -> None:
    """Gives back the memory that is not needed, and waits for a file."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with open(f"{go}.ready", "w"):
        pass
    while not os.path.exists(go):
        time.sleep(0.05)


def build(case: dict[str, Any], device: Any) -> tuple[Any, list[Any]]:
    """nanochat's model and optimizers."""
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
    if hasattr(model, "setup_optimizers"):  # of 2025
        return model, model.setup_optimizers()
    return model, [model.setup_optimizer()]


def make_step(model: Any, optimizers: list[Any], case: dict[str, Any], device: Any) -> Any:
    """The body of its training loop: accumulate, step, wait."""
    import torch

    shape = (case["rows"] // case["micro"], case["micro"], case["seq_len"] + 1)
    tokens = torch.randint(0, case["vocab"], shape, device=device)
    pairs = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens]

    of_2025 = len(optimizers) > 1

    def forward(x: Any, y: Any) -> Any:
        if of_2025 and device.type == "cuda":
            with torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16):
                return model(x, y)
        return model(x, y)

    def step() -> float:
        for x, y in pairs:
            loss = forward(x, y)
            (loss / len(pairs)).backward()
        if of_2025:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        value = loss.item()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return float(value)

    return step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:5])
