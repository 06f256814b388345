"""Benchmarks of jaxchat on one GPU, in under 8 minutes; started by bench/gpu.sh.

Each part runs in its own process with its own time limit, so that a part that fails, runs out of
memory or hangs does not lose the results of the others. A part prints one line of JSON per result
as it comes; the lines printed before its time limit count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

TOTAL = 460.0  # seconds for everything
ROWS = 32  # of 2048 tokens: one GPU's part of a step of 524,288 tokens on 8


@dataclass(frozen=True)
class Part:
    """One part of the benchmark and its time limit."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


def parts(args: argparse.Namespace) -> Iterator[Part]:
    """The parts in order of importance: the last are dropped when time runs out."""
    if args.smoke:  # one of each kind, however long it takes
        yield Part("attention", ("attention",), args.seconds)
        yield Part("d12", ("steps", "12", "32,64"), args.seconds)
        if args.nanochat:
            yield Part("nanochat d12", ("nanochat", "12", "32"), args.seconds)
        return
    yield Part("attention", ("attention",), 75)
    yield Part("d20", ("steps", "20", "16,32"), 120)
    yield Part("d24", ("steps", "24", "8,16"), 120)
    if args.nanochat:
        yield Part("nanochat d20", ("nanochat", "20", "16"), 110)
    yield Part("d12", ("steps", "12", "32,64"), 75)
    yield Part("d20 fp8", ("steps", "20", "16", "fp8"), 100)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts, or inside one of its processes the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"for everything ({TOTAL:g})")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    measure.add_peer_arguments(parser)
    args = parser.parse_args(argv)
    if args.part:
        return run_part(args)
    return run_all(args)


# ---------------------------------------------------------------------------- all parts


def run_all(args: argparse.Namespace) -> int:
    """Prints the table; 1 when no part gave a result."""
    deadline = time.monotonic() + args.seconds
    results: list[dict[str, Any]] = []
    notes = []
    if not args.nanochat:
        notes.append("nanochat: no --nanochat CHECKOUT given, left out")
    for part in parts(args):
        left = deadline - time.monotonic()
        if left < 15:
            notes.append(f"{part.name}: no time left")
            continue
        began = time.monotonic()
        found, failure = collect(part, args, min(part.seconds, left))
        results += found
        took = time.monotonic() - began
        measure.log(f"{part.name}: {len(found)} results in {took:.0f} s{failure and ', '}{failure}")
        if failure:
            notes.append(f"{part.name}: {failure}")
    print(render(results, notes))
    if args.json:
        args.json.write_text(json.dumps({"results": results, "notes": notes}, indent=1) + "\n")
    return 0 if results else 1


def collect(
    part: Part, args: argparse.Namespace, seconds: float
) -> tuple[list[dict[str, Any]], str]:
    """The results of a part, and its failure, if any."""
    command = [sys.executable, __file__, "--part", *part.arguments]
    command += ["--smoke"] if args.smoke else []
    if args.nanochat:
        command += ["--nanochat", str(args.nanochat), "--torch-python", str(args.torch_python)]
    with subprocess.Popen(
        [*command, "--seconds", f"{seconds:.0f}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        failure = ""
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            failure = f"stopped after {seconds:.0f} s"
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if child.returncode and not failure:
        failure = " ".join(err.strip().splitlines()[-1:]) or f"exit code {child.returncode}"
    return found, failure


def render(results: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    """One table."""
    lines = []
    for device in dict.fromkeys(r["device"] for r in results):
        lines.append(device)
    for title, kind in (("attention, B x T x H x K", "attention"), ("step", "step")):
        rows = [r for r in results if r["kind"] == kind]
        if rows:
            lines += ["", HEADS[kind].format(title)]
        for r in rows:
            lines.append(attention_row(r) if kind == "attention" else step_row(r))
    notes = [*notes, *fp8_notes(results)]
    return "\n".join([*lines, "", *notes]) if notes else "\n".join(lines)


def fp8_notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the requested products are in fp8, by the compiled programs."""
    return [
        f"{r['name']}, {r['rows']} rows: "
        + (f"{r['fp8_products']} products in fp8" if r["fp8_products"] else "NOTHING IS IN FP8")
        for r in results
        if "fp8_products" in r
    ]


HEADS = {
    "attention": f"{'{:<26}'}{'window':>7}  {'implementation':<16}{'forward ms':>11}"
    f"{'with backward':>14}{'TFLOP/s':>9}",
    "step": f"{'{:<16}'}{'rows':>5}{'dtype':>10}{'tokens/s':>11}{'ms':>9}{'TFLOP/s':>9}{'MFU':>7}"
    f"{'GB':>7}{'compile s':>11}",
}


def attention_row(r: dict[str, Any]) -> str:
    """A line of the first half."""
    head = f"{r['shape']:<26}{r['window']:>7}  {r['name']:<16}"
    if "failure" in r:
        return f"{head}  {r['failure']}"
    times = f"{r['forward_ms']:>11.3f}{r['both_ms']:>14.3f}"
    return f"{head}{times}{r['flops_per_second'] / 1e12:>9.1f}"


def step_row(r: dict[str, Any]) -> str:
    """A line of the second half."""
    head = f"{r['name']:<16}{r['rows']:>5}{r['dtype']:>10}"
    if "failure" in r:
        return f"{head}  {r['failure']}"
    return (
        f"{head}{r['tokens_per_second']:>11,.0f}{r['step_ms']:>9.1f}"
        f"{r['model_flops'] / 1e12:>9.2f}{r['mfu']:>7.1%}{r['memory_bytes'] / 1e9:>7.1f}"
        f"{r['compile_seconds']:>11.1f}"
    )


# ---------------------------------------------------------------------------- one part


def run_part(args: argparse.Namespace) -> int:
    """The work of a child process; results go to standard output."""
    kind, *rest = args.part
    if args.smoke:
        import jax

        jax.config.update("jax_platforms", "cpu")
    if kind == "attention":
        run_attention(args.smoke)
    elif kind == "steps":
        run_steps(int(rest[0]), rest[1], "fp8" in rest[2:], args.smoke)
    else:
        run_peer(int(rest[0]), int(rest[1]), args)
    return 0


def emit(**result: Any) -> None:
    """Hands a result over."""
    import jax

    device = jax.devices()[0]
    print(json.dumps({"device": f"{device.device_kind}, jax {jax.__version__}", **result}))


def case_of(depth: int, micro: int, fp8: bool, smoke: bool) -> measure.Case:
    """The step of a depth; with --smoke a caricature of it."""
    if smoke:
        return measure.Case(
            1, width=128, seq_len=64, vocab=512, batch=64 * 4, micro_rows=max(1, micro // 16),
            dtype="float32", fp8=fp8,
        )  # fmt: skip
    rows = max(ROWS, micro)
    return measure.Case(depth, batch=rows * 2_048, micro_rows=micro, fp8=fp8)


def run_steps(depth: int, micros: str, fp8: bool, smoke: bool) -> None:
    """A depth at several sizes of the micro-batch, the small ones first; ends when memory does."""
    from concurrent.futures import ThreadPoolExecutor

    import jax

    name = f"d{depth}{' fp8' if fp8 else ''}"
    peak = 0.0 if smoke else measure.peak_flops("bfloat16")
    sizes = [int(micro) for micro in micros.split(",")]
    steps = [measure.Step(case_of(depth, micro, fp8, smoke)) for micro in sizes]
    shapes = jax.eval_shape(steps[0].init)
    with ThreadPoolExecutor() as pool:  # XLA compiles outside of Python's lock
        compiling = [pool.submit(step.compile, shapes) for step in steps]
    state = None
    for step, compiled in zip(steps, compiling, strict=True):
        about = {
            "kind": "step", "name": name, "rows": step.case.micro, "dtype": step.case.dtype,
        }  # fmt: skip
        try:
            compiled.result()
            state = step.init() if state is None else state
            state, figures = step.measure(state, 2 if smoke else 8, peak)
        except Exception as error:  # of any kind; the sizes before it are already printed
            first = str(error).splitlines()[0][:100]
            emit(**about, failure="out of memory" if "RESOURCE_EXHAUSTED" in first else first)
            return
        if fp8:
            about["fp8_products"] = step.fp8_products()
        emit(**{**figures.to_json(), **about})


def run_peer(depth: int, micro: int, args: argparse.Namespace) -> None:
    """nanochat's step for the same case."""
    import jax

    from jaxchat.config.machine import bf16_peak

    case = case_of(depth, micro, False, args.smoke)
    # this process must not hold the GPU's memory: it asks for its name only
    jax.config.update("jax_platforms", "cpu")
    figures = measure.run_nanochat(
        case, 2 if args.smoke else 8, args.nanochat, args.torch_python, args.seconds
    )
    peak = bf16_peak(gpu_name()) or 0.0
    figures = measure.Figures(**{**vars(figures), "peak_flops": peak})
    about = {"kind": "step", "name": f"nanochat d{depth}", "rows": micro, "dtype": case.dtype}
    print(json.dumps({"device": gpu_name(), **figures.to_json(), **about}))


def gpu_name() -> str:
    """The first GPU as the driver names it; nothing where there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "cpu"
    return done.stdout.splitlines()[0].strip()


def run_attention(smoke: bool) -> None:
    """Forward, and forward with backward, of one layer of d20; full and short windows."""
    import jax
    import jax.numpy as jnp

    batch, time_, heads, size = (2, 128, 2, 16) if smoke else (16, 2_048, 10, 128)
    dtype = jnp.float32 if smoke else jnp.bfloat16
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (batch, time_, heads, size), dtype) for key in keys)
    q, k = (x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True)) for x in (q, k))
    q, k = q.astype(dtype), k.astype(dtype)
    for window in (time_, time_ // 4):
        visible = sum(min(t, window) + 1 for t in range(time_)) * batch * heads
        for name, attend in implementations(window, time_).items():
            about = {
                "kind": "attention", "name": name, "window": window,
                "shape": f"{batch} x {time_} x {heads} x {size}",
            }  # fmt: skip

            def total(q: Any, k: Any, v: Any, attend: Any = attend) -> Any:
                return jnp.sum(attend(q, k, v).astype(jnp.float32))

            forward, both = jax.jit(attend), jax.jit(jax.grad(total, argnums=(0, 1, 2)))
            times = 1 if smoke else 10
            try:
                seconds = [measure.repeat(lambda f=f: f(q, k, v), times) for f in (forward, both)]
            except Exception as error:  # one that does not work here says so, and the next comes
                emit(**about, failure=str(error).splitlines()[0][:80])
                continue
            # 2 products of the visible scores forward, 5 backward
            flops = 2 * 7 * visible * size
            emit(
                **about, forward_ms=1e3 * seconds[0], both_ms=1e3 * seconds[1],
                flops_per_second=flops / seconds[1],
            )  # fmt: skip


def implementations(window: int, time_: int) -> dict[str, Any]:
    """Name -> function of q, k, v. Training on a GPU uses the first."""
    import jax

    from jaxchat.model.attention import causal_attention

    left = None if window >= time_ - 1 else (window, 0)

    def ours(name: Any) -> Any:
        return lambda q, k, v: causal_attention(q, k, v, window=window, implementation=name)

    def xla(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=left, implementation="xla"
        )

    return {"cudnn": ours("cudnn"), "blocked": ours("blocked"), "jax xla": xla}


if __name__ == "__main__":
    sys.exit(main())
