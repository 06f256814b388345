"""Trains nanochat (modern) on given rows: its model, its optimizer, its schedules, its bpb.

    python bench/nanochat_peer/train.py CHECKOUT ROWS.npz CURVE.json [--init INIT.npz]

ROWS.npz is what bench/loss_curve.py writes. The curve goes to CURVE.json, and with --init the
weights it began from to INIT.npz.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import import_gpt, modern_run, set_up_optimizer


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("curve", type=Path)
    parser.add_argument("--init", type=Path, help="where the initial weights go")
    parser.add_argument("--seed", type=int, default=42)  # nanochat's own
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    gpt = import_gpt(options.checkout)
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with np.load(options.rows, allow_pickle=False) as file:
        rows = {name: file[name] for name in file.files}
    setting = {name: int(rows[name]) for name in ("depth", "steps", "batch_rows", "vocab_size")}
    length = rows["train"].shape[1] - 1
    script = modern_run(
        gpt,
        options.checkout,
        setting["vocab_size"],
        depth=setting["depth"],
        max_seq_len=length,
        num_iterations=setting["steps"],
        total_batch_size=setting["batch_rows"] * length,
    )
    model = gpt.GPT(script["model"].config)
    model.init_weights()
    if options.init:
        np.savez(options.init, **{k: v.numpy() for k, v in model.state_dict().items()})
    script.names["model"] = model
    curve = train(script, rows, setting, int(rows["eval_every"]))
    options.curve.write_text(json.dumps({"name": "nanochat", **curve}), encoding="utf-8")


def train(
    script: Any, rows: dict[str, np.ndarray], setting: dict[str, int], eval_every: int
) -> dict[str, Any]:
    """Loss of every step, bits per byte every `eval_every` steps, seconds of every step."""
    model, optimizer = script["model"], set_up_optimizer(script)
    losses: list[float] = []
    seconds: list[float] = []
    bits: dict[int, float] = {}
    for step in range(setting["steps"] + 1):
        if step % eval_every == 0 or step == setting["steps"]:
            bits[step] = bits_per_byte(model, rows, setting["batch_rows"])
            print(f"step {step}: {bits[step]:.4f} bits per byte", flush=True)
        if step == setting["steps"]:
            break
        begun = time.perf_counter()
        first = step * setting["batch_rows"]
        losses.append(
            one_step(script, optimizer, rows["train"][first:][: setting["batch_rows"]], step)
        )
        seconds.append(time.perf_counter() - begun)
        print(f"step {step}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s", flush=True)
    return {"loss": losses, "bpb": bits, "seconds": seconds}


def one_step(script: Any, optimizer: Any, tokens: np.ndarray, step: int) -> float:
    """One step as in nanochat's loop; returns the loss before it."""
    import torch

    batch = torch.from_numpy(tokens.astype(np.int64))
    batch = torch.from_numpy(tokens.astype(np.int64))
    loss = script["model"](*inputs_and_targets(batch))
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * script["get_lr_multiplier"](step)
        if group["kind"] == "muon":
            group["momentum"] = script["get_muon_momentum"](step)
            group["weight_decay"] = script["get_weight_decay"](step)
    optimizer.step()
    script["model"].zero_grad(set_to_none=True)
    return float(loss)


def inputs_and_targets(rows: Any) -> tuple[Any, Any]:
    """Rows [B, T+1] as nanochat's loader gives them: two contiguous tensors [B, T]."""
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def bits_per_byte(model: Any, rows: dict[str, np.ndarray], batch_rows: int) -> float:
    """nanochat's measure over the validation rows."""
    import torch
    from nanochat.loss_eval import evaluate_bpb

    held = torch.from_numpy(rows["heldout"].astype(np.int64))
    batches = [inputs_and_targets(part) for part in held.split(batch_rows)]
    sizes = torch.from_numpy(rows["token_bytes"].astype(np.int64))
    result: float = evaluate_bpb(model, batches, len(batches), sizes)
    return result


if __name__ == "__main__":
    main()
