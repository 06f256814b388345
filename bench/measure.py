"""Shared by the benchmarks: a model of a given shape, its step, clocks and memory."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxchat.model.kernels.matmul import count_products

BENCH = Path(__file__).resolve().parent
HEAD_DIM = 128


@dataclass(frozen=True)
class Case:
    """One step to measure: an architecture, the tokens of a step, and how they are computed."""

    depth: int
    preset: str = "modern"
    width: int = 0  # 0: as depth derives it
    window_pattern: str = ""  # "L": full windows; "": as the preset has it
    seq_len: int = 2_048
    vocab: int = 32_768
    batch: int = 65_536  # tokens of a step
    micro_rows: int = 0  # rows at once; 0: all
    dtype: str = "bfloat16"
    fp8: bool = False
    products: str = "auto"  # of float32 activations: see `compute.products`
    chunk_rows: int = 0  # tokens whose logits are held at once; 0: as training chooses
    fused: bool | None = None  # the forms that move the fewest bytes; None: as training chooses
    options: tuple[str, ...] = ()  # XLA's, beside those training chooses

    @property
    def rows(self) -> int:
        """Rows of a step. Raises ValueError when the batch is no whole number of micro-batches."""
        rows, rest = divmod(self.batch, self.seq_len)
        if rest or not rows or rows % (self.micro_rows or rows):
            raise ValueError(
                f"a batch of {self.batch} tokens is no whole number of micro-batches of "
                f"{self.micro_rows or 1} rows of {self.seq_len} tokens."
            )
        return rows

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""
        return self.micro_rows or self.rows


@dataclass(frozen=True)
class Figures:
    """The results of one case: seconds, bytes; medians over the timed steps."""

    name: str
    step_ms: float
    tokens_per_second: float
    model_flops: float  # FLOP/s by the model's own count (6 N + attention)
    compile_seconds: float
    memory_bytes: float  # of the device at most; on a CPU of the process
    planned_bytes: float = 0.0  # XLA's own account of the step; 0: unknown
    peak_flops: float = 0.0  # of the device, for MFU; 0: unknown
    loss: float = 0.0  # after the timed steps
    spread_ms: float = 0.0  # the slowest timed step less the fastest

    @property
    def mfu(self) -> float:
        """Share of the peak; 0 where that is unknown."""
        return self.model_flops / self.peak_flops if self.peak_flops else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON, MFU included."""
        return {**asdict(self), "mfu": self.mfu}


def run_config(case: Case) -> Any:
    """The RunConfig of a case: the architecture and the rates that its depth derives."""
    from jaxchat.config import loading

    model: dict[str, Any] = {"sequence_len": case.seq_len}
    if case.width:
        heads = max(1, case.width // HEAD_DIM)
        model |= {"n_embd": case.width, "n_head": heads, "n_kv_head": heads}
    if case.window_pattern:
        model["window_pattern"] = case.window_pattern
    run = {"name": "bench", "depth": case.depth, "preset": case.preset}
    tables = {"run": run, "model": model, "tokenizer": {"vocab_size": case.vocab}}
    return loading.from_document(tables, "the benchmark's arguments")


class Step:
    """jaxchat's step for a case, on one device, compiled ahead of its first call."""

    def __init__(self, case: Case) -> None:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from jaxchat.config.schema import ComputeConfig, MeshConfig
        from jaxchat.model.capabilities import choose_compute
        from jaxchat.optim.optimizer import make_optimizer
        from jaxchat.parallel.mesh import make_mesh, put_batch
        from jaxchat.train.step import make_train_step

        self.case, config = case, run_config(case)
        self.model = config.model
        self.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        dtype = jnp.dtype(case.dtype)
        switches = ComputeConfig(
            fp8=case.fp8, products=case.products, loss_chunk_rows=case.chunk_rows,
            compiler_options=case.options,
        )  # fmt: skip
        self.compute = choose_compute(switches, self.model, dtype)
        if case.fused is not None:
            self.compute = replace(self.compute, fused=case.fused)
        self.optimizer = make_optimizer(
            self.model, config.optim, 1000, muon_dtype=self.compute.muon_dtype
        )
        log(self.compute.describe(list(self.mesh.devices.flat), self.mesh.shape))
        self.step = make_train_step(self.model, self.optimizer, self.mesh, self.compute)
        rng = np.random.default_rng(0)
        shape = (case.rows // case.micro, case.micro, case.seq_len + 1)
        tokens = rng.integers(0, case.vocab, shape).astype(np.int32)
        batch = {"tokens": tokens, "mask": np.ones(shape, np.float32)}
        self.batch = put_batch(self.mesh, batch)
        self.compiled: Any = None
        self.run: Any = None  # the step by what was compiled
        self.compile_seconds = 0.0

    def init(self) -> Any:
        """A fresh state."""
        import jax

        from jaxchat.model import gpt
        from jaxchat.train.step import init_state

        params = gpt.init_params(jax.random.key(0), self.model)
        return init_state(params, self.optimizer, self.mesh)

    def compile(self, state: Any) -> None:
        """Compiles, and stores the time in `compile_seconds`. `state` may be shapes only."""
        began = time.perf_counter()
        self.compiled = self.step.lower(state, self.batch).compile()
        self.run = self.step.through(self.compiled)
        self.compile_seconds = time.perf_counter() - began

    def fp8_products(self) -> int:
        """Products in fp8 in the compiled step; those in a loop count once."""

        return count_products(str(self.compiled.as_text()), "f8")

    def measure(self, state: Any, steps: int, peak: float) -> tuple[Any, Figures]:
        """Times `steps` steps; returns the state after them."""
        from jaxchat.config.derive import flops_per_token

        if self.compiled is None:
            self.compile(state)
        state, metrics = self.run(state, self.batch)
        float(metrics["loss"])  # the first one is slower: buffers are allocated
        marks, previous = [time.perf_counter()], metrics
        for number in range(steps + 1):
            if number < steps:
                state, metrics = self.run(state, self.batch)
            if number:  # as in the training loop: n is dispatched before n-1 is waited for
                float(previous["loss"])
                marks.append(time.perf_counter())
            previous = metrics
        times = [b - a for a, b in itertools.pairwise(marks)]
        seconds = statistics.median(times)
        rate = self.case.batch / seconds
        return state, Figures(
            name="jaxchat",
            step_ms=1e3 * seconds,
            tokens_per_second=rate,
            model_flops=rate * flops_per_token(self.model),
            compile_seconds=self.compile_seconds,
            memory_bytes=used_memory(),
            planned_bytes=planned_memory(self.compiled),
            peak_flops=peak,
            loss=float(metrics["loss"]),
            spread_ms=1e3 * (max(times) - min(times)),
        )


def planned_memory(compiled: Any) -> float:
    """Bytes of a compiled step by XLA's account: arguments, results that are new, temporaries."""
    plan = compiled.memory_analysis()
    if plan is None:
        return 0.0
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return float(plan.argument_size_in_bytes + new + plan.temp_size_in_bytes)


def used_memory() -> float:
    """The most bytes in use so far: of the first device, or on a CPU of this process."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return float(stats.get("peak_bytes_in_use") or resident_memory())


def resident_memory() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # Linux counts in KiB


def repeat(run: Callable[[], Any], times: int, rounds: int = 5, best: bool = False) -> float:
    """Median (or least) seconds of one call, of `rounds` rounds of `times` calls each."""
    import jax

    jax.block_until_ready(run())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            result = run()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - began) / times)
    return min(seconds) if best else statistics.median(seconds)


def peak_flops(dtype: Any) -> float:
    """The peak of the first device: a GPU's by its name, a CPU's measured now with a product.

    0 where the GPU is unknown. The CPU's is that of `dtype`, the GPU's always that of bf16.
    """
    import jax
    import jax.numpy as jnp

    from jaxchat.config.machine import bf16_peak

    device = jax.devices()[0]
    if device.platform != "cpu":
        return bf16_peak(device.device_kind) or 0.0
    size = 2_048
    x = jnp.ones((size, size), jnp.dtype(dtype))
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    return 2 * size**3 / repeat(lambda: product(x), 1, best=True)


def run_nanochat(case: Case, steps: int, checkout: Path, python: Path, limit: float) -> Figures:
    """nanochat's figures for the same case, from a process of its own.

    Raises RuntimeError, with the end of what it said, when it fails or takes over `limit` seconds.
    """
    command = [str(python), str(BENCH / "nanochat_step.py"), str(checkout)]
    command += [json.dumps({**asdict(case), "rows": case.rows, "micro": case.micro}), str(steps)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"nanochat took more than {limit:.0f} seconds") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(f"nanochat's step failed: {' '.join(output[-1:])}")
    return Figures(name="nanochat", **json.loads(lines[-1]))


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments for a comparison with nanochat."""
    parser.add_argument("--nanochat", type=Path, help="a checkout of nanochat, to compare with")
    parser.add_argument(
        "--torch-python", type=Path, default=Path(sys.executable),
        help="the Python that has torch and nanochat's requirements (this one)",
    )  # fmt: skip


def log(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)
