"""Times jaxchat's training step on one device, and nanochat's if torch is installed.

    python bench/train_step.py --depth 4 --width 256 --seq-len 512 --vocab 8192 --batch 4096
    python bench/train_step.py --depth 6 --nanochat ~/nanochat --torch-python ~/torch/bin/python

The data is random tokens: the time does not depend on them. Figures are medians over --steps
steps, each dispatched before the previous one is awaited, as in training. MFU is the model's
FLOPs (6 per multiplying parameter, 12 per attention score) over the device's peak: on a CPU that
of a matrix product of the same operands, measured here; on a GPU the data sheet's for bf16. Peak
memory is the device's, on a CPU the process's. nanochat runs in its own process, after ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import measure
from measure import Case, Figures

from jaxchat.config.huge_pages import restart_with_huge_pages


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 when nanochat was asked for and failed, 2 for bad arguments."""
    parser = make_parser()
    args = parser.parse_args(argv)
    on_cpu = args.device != "gpu"
    rows = max(1, 4_096 // args.seq_len) if on_cpu else 32
    case = Case(
        depth=args.depth, preset=args.preset, width=args.width, seq_len=args.seq_len,
        vocab=args.vocab, batch=args.batch or rows * args.seq_len, micro_rows=args.micro_rows,
        dtype=args.dtype or ("float32" if on_cpu else "bfloat16"), fp8=args.fp8,
        products=args.products,
        chunk_rows=args.loss_chunk, options=tuple(args.xla),
    )  # fmt: skip
    if args.nanochat and args.preset != "modern":
        parser.error("--nanochat compares with its newest model: --preset must be modern.")
    try:
        _ = case.rows, measure.run_config(case)
    except ValueError as error:
        parser.error(str(error))
    found, failure = [run_ours(case, args.device, args.steps)], ""
    if args.nanochat:
        measure.log("nanochat: compiling")
        try:
            theirs = measure.run_nanochat(
                case, args.steps, args.nanochat, args.torch_python, args.limit
            )
            peak = found[0].peak_flops if args.device == "gpu" else measure.peak_flops(case.dtype)
            found.append(Figures(**{**vars(theirs), "peak_flops": peak}))
        except (RuntimeError, OSError) as error:
            failure = str(error)
    print(json.dumps(to_json(case, found)) if args.json else render(case, found))
    if failure:
        measure.log(f"bench: {failure}")
    return 1 if failure else 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--preset", choices=("classic", "modern"), default="modern")
    parser.add_argument("--width", type=int, default=0, help="default: 64 a layer")
    parser.add_argument("--seq-len", type=int, default=512, metavar="T")
    parser.add_argument("--vocab", type=int, default=8_192)
    parser.add_argument("--batch", type=int, default=0, help="tokens a step (4096; GPU: 32 rows)")
    parser.add_argument("--micro-rows", type=int, default=0, help="rows at once (all)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="fp32; on a GPU bf16")
    parser.add_argument("--products", choices=("auto", "plain", "bfloat16"), default="auto")
    parser.add_argument("--fp8", action="store_true", help="the large products in fp8")
    parser.add_argument("--loss-chunk", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--xla", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed (10)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--limit", type=float, default=1800, help="seconds nanochat may take")
    measure.add_peer_arguments(parser)
    return parser


def run_ours(case: Case, device: str, steps: int) -> Figures:
    """jaxchat's figures."""
    import jax

    # jax accepts `cuda` as the name of NVIDIA's GPUs, but reports `gpu`
    jax.config.update("jax_platforms", "cpu" if device == "cpu" else "cuda")
    step = measure.Step(case)
    peak = measure.peak_flops(step.compute.muon_dtype)
    state = step.init()
    measure.log("jaxchat: compiling")
    step.compile(state)
    return step.measure(state, steps, peak)[1]


def to_json(case: Case, found: Sequence[Figures]) -> dict[str, Any]:
    """The case, the figures, and ours over theirs."""
    result = {"case": vars(case), "figures": {f.name: f.to_json() for f in found}}
    if len(found) == 2:
        result["ratio"] = found[0].tokens_per_second / found[1].tokens_per_second
    return result


def render(case: Case, found: Sequence[Figures]) -> str:
    """A table with a column for each, and the ratio."""
    rows = [
        ("tokens/s", ",.0f", [f.tokens_per_second for f in found]),
        ("ms a step", ",.1f", [f.step_ms for f in found]),
        ("model GFLOP/s", ",.1f", [f.model_flops / 1e9 for f in found]),
        ("of a peak of", ",.0f", [f.peak_flops / 1e9 for f in found]),
        ("MFU %", ".1f", [100 * f.mfu for f in found]),
        ("compilation s", ",.1f", [f.compile_seconds for f in found]),
        ("peak memory GB", ",.2f", [f.memory_bytes / 1e9 for f in found]),
        ("by XLA's account", ",.2f", [f.planned_bytes / 1e9 for f in found]),
    ]
    width = f", width {case.width}" if case.width else ""
    lines = [
        f"d{case.depth} {case.preset}{width}, T={case.seq_len}, V={case.vocab}, {case.batch} "
        f"tokens a step in micro-batches of {case.micro} rows, {case.dtype}"
        f"{', fp8' if case.fp8 else ''}",
        f"{'':<18}" + "".join(f"{f.name:>12}" for f in found) + ("   ratio" if found[1:] else ""),
    ]
    for name, form, values in rows:
        cells = "".join(f"{format(value, form) if value else '-':>12}" for value in values)
        ratio = f"{values[0] / values[1]:>8.2f}" if len(values) == 2 and values[1] else ""
        lines.append(f"{name:<18}{cells}{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
