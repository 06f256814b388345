"""Writes nanochat's numbers derived from depth: tests/golden/nanochat_derived.json.

    python bench/nanochat_peer/derived.py --september CHECKOUT --modern CHECKOUT \
        --classic CHECKOUT --out FILE.json

For each preset and depth 4, 6, ..., 32, from nanochat's own code over models without data:
parameter counts, FLOPs a token, batch, iterations, every parameter group of its optimizer, and its
schedules at some steps. Beside them a few runs of 2026 with arguments given: a batch, a vocabulary,
a context, a ratio.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from load import PRESETS, TrainingScript, import_gpt, modern_run, parameters

DEPTHS = range(4, 33, 2)
VOCAB = {"classic": 65_536, "modern": 32_768, "september": 32_768}
GIVEN: tuple[dict[str, Any], ...] = (
    {"depth": 4, "vocab_size": 8192, "max_seq_len": 512, "total_batch_size": 4096},
    {"depth": 24, "target_param_data_ratio": 8.0},
    {"depth": 13, "max_seq_len": 1024, "window_pattern": "SL"},
)
SHORT = ({"depth": 6, "max_seq_len": 512, "short_seq_len": 128},)  # September's own argument


def main() -> None:
    """Parses the command line and writes the file; one process a preset, as they share names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for preset in PRESETS:
        parser.add_argument(f"--{preset}", type=Path, help="a checkout of that time")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=PRESETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        checkout = getattr(options, options.only)
        runs = (classic_runs if options.only == "classic" else modern_runs)(checkout)
        options.out.write_text(json.dumps(runs), encoding="utf-8")
        return
    result = {}
    for preset in PRESETS:
        if getattr(options, preset) is None:
            continue
        part = options.out.with_suffix(f".{preset}")
        given = [f"--{preset}", str(getattr(options, preset)), "--out", str(part)]
        subprocess.run([sys.executable, __file__, "--only", preset, *given], check=True)
        result[preset] = json.loads(part.read_text(encoding="utf-8"))
        part.unlink()
    lines = [json.dumps({"preset": p, **run}) for p, runs in result.items() for run in runs]
    options.out.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def modern_runs(checkout: Path) -> list[dict[str, Any]]:
    """Every depth, and the runs with arguments."""
    gpt = import_gpt(checkout)
    runs, own = [], SHORT if hasattr(gpt, "init_params") else ()
    for given in (*({"depth": depth} for depth in DEPTHS), *GIVEN, *own):
        arguments = {"vocab_size": VOCAB["modern"], **given}
        script = modern_run(gpt, checkout, **arguments)
        counts = dict(script["param_counts"])
        runs.append(
            {
                **reported(arguments, script["model"], counts, script),
                "scaling_params": script["num_scaling_params"],
                "batch_tokens": script["total_batch_size"],
                "groups": groups(script["model"], [script["optimizer"]]),
                "schedules": sampled(script, ("rate", "momentum", "decay")),
            }
        )
    return runs


def classic_runs(checkout: Path) -> list[dict[str, Any]]:
    """Every depth with the defaults of the time."""
    gpt = import_gpt(checkout)
    import torch

    # its fused kernel wants real tensors, and only rates are asked for
    torch.optim.AdamW = functools.partial(torch.optim.AdamW)
    gpt.partial = lambda optimizer, **_: optimizer
    runs = []
    for depth in DEPTHS:
        script = TrainingScript(checkout, {"vocab_size": VOCAB["classic"]})
        script.between("depth = ", "# Evaluation")
        script.names["depth"] = depth
        script.between("num_layers = depth", "# Optimizer / data")
        width = {"n_embd": script["model_dim"], "n_layer": depth, "n_head": script["num_heads"]}
        config = gpt.GPTConfig(
            sequence_len=script["max_seq_len"],
            vocab_size=VOCAB["classic"],
            n_kv_head=script["num_kv_heads"],
            **width,
        )
        with torch.device("meta"):
            script.names["model"] = gpt.GPT(config)
        script.between("num_params = ", "# ----")
        script.between("optimizers = model.setup_optimizers(", "if resuming")
        script.functions(["get_lr_multiplier", "get_muon_momentum"])
        arguments = {"depth": depth, "vocab_size": VOCAB["classic"]}
        runs.append(
            {
                **reported(arguments, script["model"], {"total": script["num_params"]}, script),
                "scaling_params": script["num_params"],
                "batch_tokens": script["total_batch_size"],
                "grad_clip": script["grad_clip"],
                "groups": groups(script["model"], script["optimizers"]),
                "schedules": sampled(script, ("rate", "momentum")),
            }
        )
    return runs


def reported(
    arguments: dict[str, Any], model: Any, counts: dict[str, int], script: TrainingScript
) -> dict[str, Any]:
    """The fields that both versions have, under common names."""
    config = model.config
    return {
        "arguments": arguments,
        "width": config.n_embd,
        "heads": config.n_head,
        "params": counts,
        "flops_per_token": script["num_flops_per_token"],
        "steps": script["num_iterations"],
        "tokens": script["total_tokens"],
    }


def groups(model: Any, optimizers: list[Any]) -> dict[str, dict[str, Any]]:
    """By the name of one parameter of each kind: its rate, betas and decay."""
    names = {id(p): name for name, p in parameters(model).items()}
    result = {}
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        muon = "momentum" in group
        if group["params"]:
            result["matrix" if muon else names[id(group["params"][0])]] = {
                "rate": group["lr"],
                "decay": group.get("weight_decay", 0.0),
                **({} if muon else {"betas": group["betas"]}),
            }
    return result


def sampled(script: TrainingScript, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Schedules at the steps where their slope changes, next to those, and in between."""
    functions = {
        "rate": "get_lr_multiplier",
        "momentum": "get_muon_momentum",
        "decay": "get_weight_decay",
    }
    end = script["num_iterations"]
    corners = {0, 39, 40, 299, 300, 399, 400, end // 3, end // 2, end - 1}
    corners |= {round(0.35 * end) + i for i in (-1, 0, 1)} | {round(0.8 * end) + i for i in (0, 1)}
    steps = sorted(step for step in corners if 0 <= step < end)
    values = {name: [script[functions[name]](step) for step in steps] for name in names}
    return {"step": steps, **values}


if __name__ == "__main__":
    main()
