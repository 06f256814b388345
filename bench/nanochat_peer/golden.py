"""Writes nanochat's results on a tiny model: tests/golden/nanochat_PRESET.npz.

    python bench/nanochat_peer/golden.py --nanochat CHECKOUT --preset modern --out FILE.npz

Names of parameters, and their [out, in] layout, are nanochat's. The file holds `weight/NAME`
(float16, which they are exactly), `tokens` and `targets` [B,T] (-1: not counted), `logits`, `loss`,
`grad/NAME`, `token_bytes`, `bpb`, and `after1/NAME` and `after10/NAME`: the parameters after steps
of nanochat's optimizer whose gradients are `step_gradient(grad, step)`. `settings` says, as JSON,
the model's and the optimizer's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from load import (
    PRESETS,
    TrainingScript,
    bfloat16_is_float32,
    import_gpt,
    make_model,
    parameters,
)

# A short window is 128 keys whatever the context, so that T is longer; V is padded to 64 (modern).
MODEL = {"sequence_len": 144, "vocab_size": 61, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
LAYERS = {"classic": 2, "modern": 3, "september": 3}
MORE = {"september": {"short_seq_len": 128}}  # there the window is absolute
ROWS, STEPS, HORIZON = 2, 10, 12
RATES = {"matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.008}
# So little that a rounding error which turns a cautious decision round stays under the tolerance,
# and enough that decaying or not shows after ten steps.
DECAY = 2e-3
SCHEDULE = {"warmup_steps": 3, "momentum_warmup_steps": 4, "warmdown_ratio": 0.5}
FINAL_RATE = {"classic": 0.0, "modern": 0.05, "september": 0.05}
CLIP = 1.0  # classic only


def step_gradient(gradient: np.ndarray, step: int) -> np.ndarray:
    """The gradient of one step: the real one's numbers, moved on and scaled."""
    scale = np.float32((0.1, 3.0, 1.0)[step % 3])
    return scale * np.roll(gradient, 7 * step)


def main() -> None:
    """Parses the command line and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nanochat", type=Path, required=True, help="a checkout of that time")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    gpt = import_gpt(options.nanochat)
    config = {**MODEL, "n_layer": LAYERS[options.preset], **MORE.get(options.preset, {})}
    result: dict[str, Any] = {}
    with bfloat16_is_float32():
        model = lively_model(gpt, config)
        result |= named("weight", {k: v.astype(np.float16) for k, v in arrays(model).items()})
        inputs = example(config["vocab_size"])
        result |= inputs | run_model(model, inputs)
        script = schedules(options.preset, options.nanochat)
        result |= run_optimizer(options.preset, model, script, result)
    if options.preset == "classic":
        result["logits_as_shipped"] = logits_as_shipped(gpt, config, result)
    settings = {
        "model": config,
        "optim": {**RATES, **SCHEDULE, "final_lr_frac": FINAL_RATE[options.preset]},
        "decay": DECAY,
        "clip": CLIP,
        "horizon": HORIZON,
    }
    np.savez_compressed(options.out, settings=json.dumps(settings), **result)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, loss {result['loss']:.4f}")


def named(prefix: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in parameters(model).items()}


def lively_model(gpt: ModuleType, config: dict[str, int]) -> Any:
    """nanochat's initialisation with noise on everything: zeros would hide what they multiply."""
    import torch

    torch.manual_seed(0)
    model = make_model(gpt, gpt.GPTConfig(**config))
    if hasattr(model, "init_weights"):
        model.init_weights()
    rng = np.random.default_rng(0)
    for name, p in parameters(model).items():
        size = 1.0 if name.startswith("lm_head") else 0.2  # so that the softcap bends the logits
        noise = torch.from_numpy(size * rng.standard_normal(p.shape, np.float32))
        p.data = (p.data + noise).to(torch.float16).to(torch.float32)
    return model


def example(vocab_size: int) -> dict[str, np.ndarray]:
    """Rows, partly masked targets, and the bytes of each token, some of them special."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, vocab_size, (ROWS, MODEL["sequence_len"] + 1), np.int64)
    targets = np.where(rng.random(tokens[:, 1:].shape) < 0.2, -1, tokens[:, 1:])
    token_bytes = rng.integers(1, 9, vocab_size, np.int64)
    token_bytes[-9:] = 0
    return {"tokens": tokens[:, :-1], "targets": targets, "token_bytes": token_bytes}


def run_model(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Logits, loss, gradients and bits per byte."""
    import torch

    try:
        from nanochat.loss_eval import evaluate_bpb
    except ImportError:  # September
        from evals.bpb import evaluate_bpb

    x, y, sizes = (torch.from_numpy(inputs[k]) for k in ("tokens", "targets", "token_bytes"))
    loss = model(x, y)
    loss.backward()
    grads = {name: p.grad.numpy().copy() for name, p in parameters(model).items()}
    with torch.no_grad():
        logits = model(x).numpy()
    # Two batches of one row: they are weighted by their bytes.
    bits = evaluate_bpb(model, zip(x.split(1), y.split(1), strict=True), ROWS, sizes)
    return {"logits": logits, "loss": loss.item(), "bpb": bits, **named("grad", grads)}


def schedules(preset: str, checkout: Path) -> TrainingScript:
    """nanochat's schedules, over a horizon of a few steps."""
    names = {"num_iterations": HORIZON, "final_lr_frac": FINAL_RATE[preset]}
    names |= {"warmdown_ratio": SCHEDULE["warmdown_ratio"], "weight_decay_scaled": DECAY}
    names["warmup_ratio"] = SCHEDULE["warmup_steps"] / HORIZON
    names["args"] = SimpleNamespace(**names, warmup_steps=SCHEDULE["warmup_steps"])
    script = TrainingScript(checkout, names)
    script.functions(["get_lr_multiplier", "get_weight_decay"])
    warmup = "300" if preset == "classic" else "400"  # steps, written into the function
    script.functions(["get_muon_momentum"], {warmup: str(SCHEDULE["momentum_warmup_steps"])})
    return script


def run_optimizer(
    preset: str, model: Any, script: TrainingScript, grads: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parameters after one and after ten steps as in nanochat's loop."""
    import torch

    if preset != "classic":
        optimizers = [model.setup_optimizer(**RATES, scalar_lr=0.5, weight_decay=DECAY)]
    else:
        optimizers = model.setup_optimizers(**RATES)
    result = {}
    for step in range(STEPS):
        for name, p in parameters(model).items():
            # in place: September's are views of what its optimizer reduces
            p.grad.copy_(torch.from_numpy(step_gradient(grads[f"grad/{name}"], step)))
        if preset == "classic":
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in (group for o in optimizers for group in o.param_groups):
            group["lr"] = group["initial_lr"] * script["get_lr_multiplier"](step)
            if "momentum" in group:
                group["momentum"] = script["get_muon_momentum"](step)
                if preset != "classic":
                    group["weight_decay"] = script["get_weight_decay"](step)
        for optimizer in optimizers:
            optimizer.step()
        if step + 1 in (1, STEPS):
            result |= named(f"after{step + 1}", arrays(model))
    return result


def logits_as_shipped(
    gpt: ModuleType, config: dict[str, int], result: dict[str, np.ndarray]
) -> np.ndarray:
    """The classic version's logits with its rotary tables in bf16, as it has them even in fp32."""
    import torch

    model = gpt.GPT(gpt.GPTConfig(**config))
    weights = {k.removeprefix("weight/"): v for k, v in result.items() if k.startswith("weight/")}
    model.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()})
    with torch.no_grad():
        logits: np.ndarray = model(torch.from_numpy(result["tokens"])).numpy()
    return logits


if __name__ == "__main__":
    main()
