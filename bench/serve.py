"""The server under 1, 8 and 64 clients, beside nanochat's; and a soak test.

    python bench/serve.py --nanochat CHECKOUT --torch-python PYTHON

Both serve the same weights, random ones that never end an answer; both run while they are measured
in turns. Every client streams one answer after the other. Without --nanochat only ours is measured.

    python bench/serve.py --soak 30

lets 64 clients connect, read, cancel, send garbage and disappear for the given minutes, and exits
with 1 for an error that is not theirs, a lost slot, or growing memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import serve_soak
from core import write_model

from jaxchat.checkpoints.save import save_params
from jaxchat.config import loading
from jaxchat.config.derive import derive_model
from jaxchat.config.huge_pages import restart_with_huge_pages
from jaxchat.config.schema import MODELS, ModelConfig, RunConfig
from jaxchat.model import gpt
from jaxchat.runs import run_dir, runner
from jaxchat.runs.stages import STAGES
from jaxchat.tokenizer import Tokenizer, train_tokenizer
from jaxchat.tokenizer.patterns import SPECIAL_TOKENS

PEER = Path(__file__).resolve().parent / "nanochat_peer" / "serve.py"
CONTEXT = 512
LONGEST_START = 900  # seconds
QUESTION = "Why is the sky blue, and what has the size of a molecule to do with it?"


@dataclasses.dataclass(frozen=True)
class Target:
    """A server, and how its stream looks."""

    name: str
    port: int
    path: str
    first: bytes  # comes with the first text
    last: bytes  # ends the stream
    extra: dict[str, Any]


def main() -> int:
    """Measures, and prints a table; or soaks."""
    args = parse()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, params, tokenizer = make_weights(args)
        home = make_home(folder / "home", model, params, tokenizer)
        process, port = stack.enter_context(ours(home, args))
        if args.soak:
            return serve_soak.soak(port, process.pid, 60 * args.soak, args.seed)
        targets = [
            Target("jaxchat", port, "/v1/chat/completions", b'"delta":{"content"', b"[DONE]",
                   {"stream": True})
        ]  # fmt: skip
        if args.nanochat:
            port = stack.enter_context(theirs(args, folder, model, params, home))
            targets.append(
                Target("nanochat", port, "/chat/completions", b'"token"', b'"done"', {"top_k": 50})
            )
        compare(targets, args)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--answers", type=int, default=3, help="of each client, and at least 8")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--slots", type=int, help="default: the server's")
    parser.add_argument("--nanochat", type=Path, metavar="CHECKOUT", help="of November 2025")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_weights(args: argparse.Namespace) -> tuple[ModelConfig, Any, Tokenizer]:
    """A random model whose likeliest token is never a special one, and a tokenizer of Python."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in library]
    tokenizer = train_tokenizer(texts, args.vocab)
    model = derive_model(args.depth, "classic", tokenizer.vocab_size, CONTEXT)
    params = gpt.init_params(jax.random.key(0), model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    silent = [tokenizer.special(name) for name in SPECIAL_TOKENS]
    head = (10 * params["lm_head"]["kernel"]).at[:, silent].set(0.0)
    return model, {**params, "lm_head": {"kernel": head}}, tokenizer


def make_home(home: Path, model: ModelConfig, params: Any, tokenizer: Tokenizer) -> Path:
    """A home with a run of these weights, recorded by the pipeline."""
    config = dataclasses.replace(base_config(), model=model)

    def make(name: str) -> Any:
        def run(context: runner.Context) -> dict[str, Any]:
            if name == "tokenizer":
                tokenizer.save(context.folder(name))
            if name in MODELS:
                save_params(context.folder(name) / "model", params, {"stage": name})
            return {"artifact": name}

        return run

    run = run_dir.folder(home, config.name)
    run_dir.write_config(run, config)
    stages = [dataclasses.replace(stage, run=make(stage.name)) for stage in STAGES]
    with contextlib.redirect_stdout(None):
        runner.run_stages(stages, runner.Context(config, run))
    return home


def base_config() -> RunConfig:
    return loading.from_document({"run": {"name": "bench", "depth": 2}}, "bench")


@contextlib.contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Ends a process with the block."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def ours(home: Path, args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[Any], int]]:
    """`jaxchat serve`, warm."""
    port = free_port()
    command = [sys.executable, "-m", "jaxchat", "serve", "--home", str(home), "--quiet"]
    command += ["--port", str(port)] + (["--slots", str(args.slots)] if args.slots else [])
    log = home / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    with ended(process):
        wait_until_ready(f"http://127.0.0.1:{port}/ready", process, "jaxchat", log)
        yield process, port


@contextlib.contextmanager
def theirs(
    args: argparse.Namespace, folder: Path, model: ModelConfig, params: Any, home: Path
) -> Iterator[int]:
    """nanochat's server on the same weights."""
    port = free_port()
    write_model(folder / "model.npz", model, params)
    command = [
        args.torch_python, str(PEER), "--nanochat", str(args.nanochat.resolve()), "--model",
        str(folder / "model.npz"), "--tokenizer", str(home / "runs" / "bench" / "tokenizer"),
        "--base", str(folder / "nanochat"), "--port", str(port),
    ]  # fmt: skip
    log = folder / "nanochat.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    with ended(process):
        wait_until_ready(f"http://127.0.0.1:{port}/health", process, "nanochat", log)
        yield port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_until_ready(url: str, process: subprocess.Popen[Any], name: str, log: Path) -> None:
    """Waits for a server; where it does not start, leaves with its name and the end of its log."""
    deadline = time.monotonic() + LONGEST_START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.05)
    code = process.poll()
    why = f"was not ready in {LONGEST_START} s" if code is None else f"ended with {code}"
    sys.exit(f"{name} {why}; the end of its log:\n{log.read_text(errors='replace')[-2000:]}")


def compare(targets: list[Target], args: argparse.Namespace) -> None:
    """Measures all targets with a number of clients, in turns, and prints the results."""
    for target in targets:
        asyncio.run(crowd(target, 2, 1, args))  # warm
    print(f"{os.cpu_count()} cores, depth {args.depth}, {args.tokens} tokens an answer")
    print("clients  server        first token s  tokens/s     a client's tokens/s")
    print(f"{'':>7}  {'':<9} {'p50':>8} {'p95':>8} {'all':>9} {'p50':>9} {'p95':>9}")
    for clients in args.clients:
        answers = max(args.answers, -(-8 // clients))
        rates = []
        for target in targets:
            began = time.perf_counter()
            found = asyncio.run(crowd(target, clients, answers, args))
            rate = len(found) * args.tokens / (time.perf_counter() - began)
            firsts = [first for first, _ in found]
            each = [args.tokens / whole for _, whole in found]
            rates.append((rate, *spread(firsts)))
            columns = [*(f"{value:8.3f}" for value in spread(firsts)), f"{rate:9.1f}"]
            columns += [f"{value:9.1f}" for value in spread(each)]
            print(f"{clients:7d}  {target.name:<9} {' '.join(columns)}", flush=True)
        if len(rates) == 2:
            (rate, p50, p95), (their_rate, their_p50, their_p95) = rates
            print(
                f"{'':>7}  ratios: tokens/s {rate / their_rate:.2f} x; first token p50 "
                f"{their_p50 / p50:.2f} x, p95 {their_p95 / p95:.2f} x sooner",
                flush=True,
            )


def spread(values: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


async def crowd(
    target: Target, clients: int, answers: int, args: argparse.Namespace
) -> list[tuple[float, float]]:
    """(seconds to the first text, seconds to the end) of every answer."""

    async def one(number: int) -> list[tuple[float, float]]:
        return [await answer(target, f"{QUESTION} ({number}, {n})", args) for n in range(answers)]

    return [pair for pairs in await asyncio.gather(*map(one, range(clients))) for pair in pairs]


async def answer(target: Target, question: str, args: argparse.Namespace) -> tuple[float, float]:
    """One streamed answer."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": args.tokens,
        "temperature": args.temperature,
        **target.extra,
    }
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(serve_soak.request_bytes(target.path, json.dumps(body).encode()))
    first, tail = 0.0, b""
    try:
        while piece := await reader.read(65536):
            tail = tail[-64:] + piece
            if not first and target.first in tail:
                first = time.perf_counter() - began
            if target.last in tail:
                return first, time.perf_counter() - began
    finally:
        writer.close()
    sys.exit(f"{target.name} broke off: {tail[-300:]!r}")


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
