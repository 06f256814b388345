"""The processes of bench/gpu.py: one part of it each; results go to standard output as JSON."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import measure
from measure import Case, Step

RECOMPUTED = re.compile(r"^ *(?:ROOT )?%?[\w.-]*\bremat[\w.-]* = ", re.MULTILINE)
COMPILED = re.compile(r"Compiling (\S+)")  # what jax_log_compiles says
TRACED = ("tier 100 fused", "d20 fused", "d20 fp8 fused", "tier 100", "d20", "d20 fp8")
TRACED_STEPS = 2
ROWS = (1, 8, 64)  # of decoding
TRACED_ROWS = (1, 8)


@dataclass(frozen=True)
class Program:
    """A step to compile and measure; those of one group are compiled in one process."""

    case: Case
    before_ms: float  # on 2026-11-27 on an H100, without `fused`
    group: str = "d20"


def programs(smoke: bool) -> dict[str, Program]:
    """The steps by name, the most important first; each in both forms where there are two."""
    d20 = Case(20, micro_rows=16)
    d24 = replace(d20, depth=24)
    rows = {
        "tier 100": Program(replace(d20, preset="classic", vocab=65_536), 485.6, "classic"),
        "d20": Program(d20, 453.0),
        "d20 fp8": Program(replace(d20, fp8=True), 406.3, "fp8"),
        "d24": Program(d24, 707.3, "d24"),
        "d24 fp8": Program(replace(d24, fp8=True), 619.4, "fp8"),
        "d20 full windows": Program(replace(d20, window_pattern="L"), 468.5),
        "d20 32 rows": Program(replace(d20, micro_rows=32), 446.2),
    }
    if smoke:
        rows = {name: replace(rows[name], case=tiny(rows[name].case)) for name in list(rows)[:3]}
    if "fused" not in {field.name for field in fields(Case)}:
        return rows
    both: dict[str, Program] = {}
    for name, row in rows.items():
        for form, fused in ((f"{name} fused", True), (f"{name} plain", False)):
            both[form] = replace(row, case=replace(row.case, **{"fused": fused}))
    last = [f"{name} plain" for name in list(rows)[3:]]  # known from before
    return {name: both[name] for name in [*(n for n in both if n not in last), *last]}


def tiny(case: Case) -> Case:
    """A caricature of a step."""
    return replace(
        case, depth=1, width=128, seq_len=64, vocab=512, batch=4 * 64, micro_rows=2,
        dtype="float32",
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("compile", "steps", "traces", "decode"))
    parser.add_argument("names", nargs="*", help="of `programs`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="of compiled programs")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--nice", type=int, default=5)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    import jax

    if args.smoke:
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(args.cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    PARTS[args.part](args)
    return 0


def emit(kind: str, name: str, **result: Any) -> None:
    """Hands a result over, in one write: there are several threads."""
    import jax

    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    sys.stdout.write(json.dumps({"kind": kind, "name": name, "device": device, **result}) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def failing(kind: str, name: str) -> Iterator[None]:
    """A failure of any kind is a result; the next one is tried."""
    try:
        yield
    except Exception as error:
        logging.exception("%s", name)
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        emit(kind, name, failure="out of memory" if "RESOURCE_EXHAUSTED" in first else first)
    gc.collect()  # what a failure held of the device


# ---------------------------------------------------------------------------- compile


def run_compile(args: argparse.Namespace) -> None:
    """Compiles the programs into the cache: traced one by one, compiled in threads.

    XLA compiles outside of Python's lock, tracing holds it.
    """
    os.nice(args.nice)  # nanochat's compiler has one thread of Python
    known = programs(args.smoke)
    with ThreadPoolExecutor(2) as pool:  # later ones find what the autotuner chose for the first
        for name in args.names:
            if name == "decode":
                with failing("compiled", name):
                    decode_all(args.smoke)
                continue
            with failing("compiled", name):
                step = Step(known[name].case)
                began = time.perf_counter()
                lowered = step.step.lower(state_shapes(step), step.batch)
                traced = time.perf_counter() - began
                pool.submit(finish, name, lowered, traced, known[name].case.fp8)


def finish(name: str, lowered: Any, traced: float, fp8: bool) -> None:
    """Compiles a program, and says what XLA made of it."""
    from jaxchat.model.kernels.matmul import count_products

    with failing("compiled", name):
        began = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - began
        text = str(compiled.as_text())
        facts = {"fp8_products": count_products(text, "f8")} if fp8 else {}
        emit(
            "compiled", name, compile_seconds=seconds, trace_seconds=traced,
            planned_bytes=measure.planned_memory(compiled),
            recomputed=len(RECOMPUTED.findall(text)), **facts,
        )  # fmt: skip


def state_shapes(step: Step) -> Any:
    """Shapes of a step's state."""
    import jax

    return jax.eval_shape(step.init)


def fresh_state(step: Step) -> Any:
    """A state, the same for all forms of a model; made by one program, so that it takes no time."""
    import jax

    from jaxchat.model import gpt
    from jaxchat.train.step import init_state

    params = jax.jit(lambda: gpt.init_params(jax.random.key(0), step.model))()
    return init_state(params, step.optimizer, step.mesh)


# ---------------------------------------------------------------------------- steps


def run_steps(args: argparse.Namespace) -> None:
    """The card's ceilings, then the programs one by one, alone on the device."""
    import jax

    with failing("ceiling", "ceilings"):
        ceilings(args.smoke)
    peak = 0.0 if args.smoke else measure.peak_flops("bfloat16")
    known = programs(args.smoke)
    for name in args.names:
        with failing("step", name):
            measure_step(name, known[name], args.steps, peak)
        jax.clear_caches()  # its program's memory


def measure_step(name: str, program: Program, steps: int, peak: float) -> None:
    """One program from a fresh state."""
    step = Step(program.case)
    step.compile(state_shapes(step))  # found in the cache
    figures = step.measure(fresh_state(step), steps, peak)[1].to_json()
    loaded = figures.pop("compile_seconds")  # how long it took to compile is a result of its own
    del figures["name"]
    emit("step", name, **figures, load_seconds=loaded, before_ms=program.before_ms)


def ceilings(smoke: bool) -> None:
    """A large bf16 product, and a copy that is too large for the cache."""
    import jax
    import jax.numpy as jnp

    size, numbers = (256, 1 << 18) if smoke else (8_192, 1 << 27)
    key = jax.random.key(0)
    a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in jax.random.split(key))
    product = jax.jit(jnp.matmul)
    rate = 2 * size**3 / measure.repeat(lambda: product(a, b), 1 if smoke else 20)
    emit("ceiling", f"bf16 product of {size}^3", value=rate / 1e12, unit="TFLOP/s")
    x = jax.random.normal(key, (numbers,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    rate = 2 * x.nbytes / measure.repeat(lambda: add(x), 1 if smoke else 20)
    emit("ceiling", f"a + 1 over {x.nbytes / 1e9:.2f} GB", value=rate / 1e12, unit="TB/s")


# ---------------------------------------------------------------------------- traces


def run_traces(args: argparse.Namespace) -> None:
    """Steps and decoding, recorded as `jaxchat profile` reads them; the first two and one of fp8.

    Started with XLA's command buffers off: with them, no kernel has its operation's name.
    """
    import jax

    known = programs(args.smoke)
    for name in [name for name in TRACED if name in known][:3]:
        with failing("trace", name):
            trace_step(name, known[name].case, args.out)
        jax.clear_caches()
    with failing("trace", "decode"):
        trace_decode(args)


def trace_step(name: str, case: Case, out: Path) -> None:
    """Some steps of a program."""
    import jax

    from jaxchat.config.derive import flops_per_token

    step = Step(case)
    step.compile(state_shapes(step))
    state = fresh_state(step)
    for _ in range(2):
        state, metrics = step.run(state, step.batch)
    jax.block_until_ready(state)
    facts = {
        "stage": "base", "start": 2, "stop": 2 + TRACED_STEPS, "step_tokens": case.batch,
        "flops_per_token": flops_per_token(step.model), "devices": 1,
    }  # fmt: skip
    with traced(out, f"trace {name}", facts, {"step": step.compiled.as_text()}):
        for number in range(2, 2 + TRACED_STEPS):
            with jax.profiler.StepTraceAnnotation("base", step_num=number):
                state, metrics = step.run(state, step.batch)
        float(metrics["loss"])


def trace_decode(args: argparse.Namespace) -> None:
    """A few dispatches of decoding, at several numbers of rows."""
    import jax

    for rows in TRACED_ROWS:
        engine, request = make_engine(rows, args.smoke)
        answer(engine, [request(n) for n in range(rows)])
        for number in range(rows):
            engine.submit(request(number))
        engine.step()
        facts = {"stage": "decode", "rows": rows}
        loaded = [p.hlo_modules()[0] for p in jax.devices()[0].client.live_executables()]
        texts = {m.name: m.to_string() for m in loaded if "decode" in m.name}
        with traced(args.out, f"trace decode {rows}", facts, texts):
            for _ in range(4):
                engine.step()


@contextlib.contextmanager
def traced(out: Path, name: str, facts: dict[str, Any], texts: dict[str, str]) -> Iterator[None]:
    """Records what is done inside into an archive, beside the programs' texts."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    device = jax.devices()[0]
    record = {"format": "jaxchat-profile-1", **facts}
    record |= {"device_kind": device.device_kind, "platform": device.platform}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name.replace(" ", "_")
        folder.mkdir()
        began = time.perf_counter()
        with jax.profiler.trace(folder, profiler_options=options):
            yield
            seconds = time.perf_counter() - began
        (folder / "profile.json").write_text(json.dumps(record))
        for program, text in texts.items():
            (folder / f"{program}.hlo.txt").write_text(text)
        file = out / f"{folder.name}.tgz"
        with tarfile.open(file, "w:gz", compresslevel=6) as tar:
            tar.add(folder, arcname=folder.name)
    emit("trace", name, recorded_seconds=seconds, archive_bytes=file.stat().st_size)


# ---------------------------------------------------------------------------- decode


def run_decode(args: argparse.Namespace) -> None:
    """The engine's speed, and what the first token waits for."""
    from jaxchat.inference.measure import device_bandwidth, measure

    with failing("first token", "8 rows"):
        first_tokens(*make_engine(8, args.smoke), 8)
    bandwidth, _ = device_bandwidth()
    params, model, tokenizer, compute = make_model(args.smoke)
    size = sizes(args.smoke)
    for rows in ROWS:
        with failing("decode", f"{rows} rows"):
            reading = measure(
                params, model, tokenizer, batch=rows, prompt=size, tokens=size, compute=compute,
                bandwidth=bandwidth,
            )  # fmt: skip
            emit("decode", f"{rows} rows", **reading.to_json())


def first_tokens(engine: Any, request: Any, rows: int) -> None:
    """Seconds to the first token, five times after the first: of all rows, and of one alone."""
    for count in (rows, 1):
        with compilations() as first:
            answer(engine, [request(n) for n in range(count)])
        with compilations() as later:
            seconds = [answer(engine, [request(n) for n in range(count)]) for _ in range(5)]
        emit(
            "first token", f"{count} of {rows} rows", seconds=seconds, compiled=later,
            compiled_before=first,
        )  # fmt: skip


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what is compiled inside."""
    import jax

    names: list[str] = []

    class Names(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.extend(COMPILED.findall(record.getMessage()))

    handler, logger = Names(), logging.getLogger("jax")
    logger.addHandler(handler)
    jax.config.update("jax_log_compiles", True)
    try:
        yield names
    finally:
        jax.config.update("jax_log_compiles", False)
        logger.removeHandler(handler)


def decode_all(smoke: bool) -> None:
    """Compiles what decoding needs, by decoding."""
    for rows in ROWS:
        engine, request = make_engine(rows, smoke)
        for count in (rows, 1):
            began = time.perf_counter()
            first = answer(engine, [request(n) for n in range(count)])
            emit(
                "compiled", f"decode {count} of {rows} rows", first_token_seconds=first,
                compile_seconds=time.perf_counter() - began,
            )  # fmt: skip


def make_model(smoke: bool) -> tuple[Any, Any, Any, Any]:
    """Random weights of d20 modern, its sizes, a tokenizer with an id for every row, a Compute."""
    import jax

    from jaxchat.config.derive import derive_model
    from jaxchat.config.schema import ComputeConfig
    from jaxchat.model.capabilities import inference_compute
    from jaxchat.model.gpt import init_params
    from jaxchat.tokenizer import Tokenizer
    from jaxchat.tokenizer.patterns import MIN_VOCAB_SIZE

    depth, vocab = (1, 512) if smoke else (20, 32_768)
    model = derive_model(depth, "modern", vocab)
    pairs = [bytes(divmod(n, 256)) for n in range(vocab - MIN_VOCAB_SIZE)]
    tokenizer = Tokenizer([*(bytes([n]) for n in range(256)), *pairs])
    params = jax.jit(lambda: init_params(jax.random.key(0), model))()
    return params, model, tokenizer, inference_compute(ComputeConfig(), model)


def make_engine(rows: int, smoke: bool) -> tuple[Any, Any]:
    """An engine of `make_model`, and what makes the n-th request."""
    import numpy as np

    from jaxchat.inference.engine import Engine, Request

    params, model, tokenizer, compute = make_model(smoke)
    size = sizes(smoke)
    engine = Engine(params, model, tokenizer, slots=rows, max_len=2 * size, compute=compute)

    def request(number: int) -> Any:
        tokens = np.random.default_rng(number).integers(0, model.vocab_size, size).tolist()
        return Request(tuple(tokens), max_tokens=size, temperature=1.0, seed=number)

    return engine, request


def sizes(smoke: bool) -> int:
    """Tokens of a prompt, and of an answer."""
    return 16 if smoke else 128


def answer(engine: Any, requests: Sequence[Any]) -> float:
    """Answers requests; the seconds to their first tokens."""
    began = time.perf_counter()
    for request in requests:
        engine.submit(request)
    engine.step()
    first = time.perf_counter() - began
    while engine.step():
        pass
    return first


PARTS = {"compile": run_compile, "steps": run_steps, "traces": run_traces, "decode": run_decode}

if __name__ == "__main__":
    sys.exit(main())
