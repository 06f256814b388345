"""Two settings, or two commits, by what their compiled steps do: nothing is run, no GPU is needed.

    python bench/aot.py --tier 100 --before fused=false
    python bench/aot.py --tier gpt2 --kind h200 --after compute.fp8=true
    python bench/aot.py --depth 24 --before commit=HEAD~3 --after base.micro_rows=8

A side is what the tier (or --depth) has, changed by `KEY=VALUE` as for --set; `fused=false` takes
the plain forms of norms and losses, `commit=REV` another commit's package, and its counters. Each
side compiles in a process of its own, with the wheels of the extra `aot`; cuDNN's need not be
there, as this script overrides JAX's question for its version.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CUDNN = 91_900  # the version that JAX is made to see


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles both sides and prints them with their ratios; 1 when one does not compile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", default="100", help="whose base step it is (100)")
    parser.add_argument("--depth", type=int, help="instead: modern, 2 x 16 rows, on one device")
    parser.add_argument("--kind", default="h100", help="of device (h100)")
    parser.add_argument("--before", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--after", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write both sides there")
    parser.add_argument("--side", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side is not None:
        print(json.dumps(compile_side(args, args.side)))
        return 0
    sides = [run_side(args, side) for side in (args.before, args.after)]
    if args.json:
        args.json.write_text(json.dumps(sides, indent=1), encoding="utf-8")
    print("\n".join(render(*sides)))
    return 0


def run_side(args: argparse.Namespace, settings: list[str]) -> dict[str, Any]:
    """A side's figures, of a process of its own; SystemExit with its last line where it fails."""
    revision = next((s.partition("=")[2] for s in settings if s.startswith("commit=")), "")
    settings = [setting for setting in settings if not setting.startswith("commit=")]
    case = ["--tier", args.tier, "--kind", args.kind]
    case += ["--depth", str(args.depth)] if args.depth else []
    with tempfile.TemporaryDirectory(prefix="jaxchat-aot-") as folder:
        tree = ROOT
        if revision:
            tree = check_out(revision, Path(folder))
        done = subprocess.run(
            [sys.executable, __file__, *case, "--side", *settings],
            env={**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        sys.exit("\n".join(done.stderr.strip().splitlines()[-1:]) or "a side did not compile")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def check_out(revision: str, folder: Path) -> Path:
    """A commit's package in a folder, which is returned; SystemExit where it cannot compile."""
    packed = subprocess.run(
        ["git", "archive", revision, "jaxchat", "configs"], cwd=ROOT, capture_output=True
    )
    if packed.returncode:
        sys.exit(packed.stderr.decode().strip().splitlines()[0])
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    if not (folder / "jaxchat/train/compiled/program.py").exists():
        sys.exit(f"{revision} cannot compile for a device that is not there; name a later commit.")
    for built in (ROOT / "jaxchat").glob("_bpe*.so"):  # git has only its source
        shutil.copy(built, folder / "jaxchat")
    return folder


def read_config(args: argparse.Namespace, settings: Sequence[str]) -> Any:
    """The run that both sides change."""
    from jaxchat.config import loading

    if not args.depth:
        return loading.load(loading.find_tier(args.tier), settings)
    tables = {
        "run": {"name": "bench", "depth": args.depth, "preset": "modern"},
        "tokenizer": {"vocab_size": 32_768},
        "base": {"batch_tokens": 65_536, "micro_rows": 16},
        "hardware": {"devices": 1},
    }
    return loading.from_document(loading.apply_overrides(tables, settings), "the arguments")


def compile_side(args: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """Compiles one side here; figures by name."""
    private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    private.check_cudnn_version = lambda *_: CUDNN  # type: ignore[attr-defined]
    from jaxchat.train.compiled.program import compile_step, stage_compute
    from jaxchat.train.compiled.roofline import roofline
    from jaxchat.train.compiled.targets import TARGETS

    plain = "fused=false" in settings
    config = read_config(args, [one for one in settings if not one.startswith("fused=")])
    target = TARGETS[args.kind]
    compute = stage_compute(config, target)
    compute = replace(compute, fused=False) if plain else compute
    program = compile_step(config, target, compute=compute)
    time = roofline(program.counts, target)
    counts = program.counts
    return {
        "step, ms": time.seconds * 1e3,
        "products, ms": time.products * 1e3,
        "attention, ms": time.attention * 1e3,
        "elementwise, ms": time.elementwise * 1e3,
        "products, TFLOP": counts.product_flops / 1e12,
        "recomputed products": counts.recomputed,
        "elementwise, GB": (counts.fine + counts.tanh) / 1e9,
        **{f"- {name}": size / 1e9 for name, (_, size) in counts.parts.items()},
        "elementwise, naive, GB": counts.naive / 1e9,
        "elementwise kernels": counts.kernels,
        "memory, GB": program.memory / 1e9,
        "temporaries, GB": program.temporaries / 1e9,
        "compiling, s": program.seconds,
    }


def render(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line a figure: both sides and their ratio."""
    lines = [f"{'':30}{'before':>12}{'after':>12}{'ratio':>9}"]
    for name in dict.fromkeys([*before, *after]):
        one, two = before.get(name, 0.0), after.get(name, 0.0)
        ratio = f"{two / one:9.3f}" if one else ""
        lines.append(f"{name:30}{one:12,.1f}{two:12,.1f}{ratio}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
