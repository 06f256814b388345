"""Benchmarks of jaxchat on one GPU, in under 8 minutes; started by bench/gpu.sh.

1. Every program is compiled, all at the same time, into JAX's cache of compiled programs; nanochat
   compiles beside them, makes its first steps, and waits.
2. nanochat's step is measured, alone; then ours one by one, each loaded from the cache.
3. Steps and decoding are traced, with XLA's command buffers off so that every kernel has a name.
4. Decoding is measured.

Each part has its own processes (bench/gpu_parts.py) and its own time limit, so that one that fails,
runs out of memory or hangs does not lose the results of the others. Results are lines of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import gpu_table
import measure
from gpu_parts import TRACED, programs

BENCH = Path(__file__).resolve().parent
TOTAL = 450.0  # seconds for everything
LIMITS = {"compile": 200.0, "nanochat": 30.0, "steps": 170.0, "traces": 75.0, "decode": 60.0}
# Seconds that a part leaves to those after it, the table and the archives included.
LATER = {"compile": 10.0, "nanochat": 10.0, "steps": 100.0, "traces": 40.0, "decode": 10.0}
# Command buffers hide the kernels' names. What XLA's autotuner chose is kept.
NO_BUFFERS = "--xla_gpu_enable_command_buffer= --xla_gpu_dump_autotune_results_to="
ARCHIVE_BYTES = 12 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts and prints the table; 1 when no step was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on a CPU")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for all results")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"for everything ({TOTAL:g})")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed (8)")
    measure.add_peer_arguments(parser)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="jaxchat-gpu-") as scratch, Book(args.out) as book:
        Day(args, book, Path(scratch)).run()
        table = gpu_table.render(book.results)
        book.log(table)
    return 0 if any(r["kind"] == "step" for r in book.results) else 1


class Book:
    """The results, written as they come: results.jsonl, and log.txt with all that was printed."""

    def __init__(self, folder: Path) -> None:
        self.results: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._lines = (folder / "results.jsonl").open("w", encoding="utf-8")
        self.output = (folder / "log.txt").open("w", encoding="utf-8")

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.output.close()

    def add(self, result: dict[str, Any]) -> None:
        """Keeps a result."""
        result = {"at": round(time.monotonic() - self._began, 1), **result}
        with self._lock:
            self.results.append(result)
            self._lines.write(json.dumps(result) + "\n")
            self._lines.flush()
        self.log(gpu_table.short(result))

    def note(self, text: str) -> None:
        """Keeps a sentence about a part."""
        self.add({"kind": "note", "text": text})

    def log(self, text: str) -> None:
        """Prints, and writes into log.txt."""
        with self._lock:
            print(text, flush=True)
            self.output.write(text + "\n")
            self.output.flush()


class Child:
    """A process of a part; the lines of JSON that it prints are results."""

    def __init__(
        self, name: str, command: Sequence[str], book: Book, extra: dict[str, Any] | None = None,
        **environment: str,
    ) -> None:  # fmt: skip
        self.name, self._book, self._extra = name, book, extra or {}
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=book.output, text=True,
            env={**os.environ, **environment}, process_group=0,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("{"):
                self._book.add({**json.loads(line), **self._extra})

    def ended(self) -> bool:
        """Whether it needs no more waiting for."""
        return self._process.poll() is not None

    def close(self, until: float) -> None:
        """Waits, at most until then, and notes how it ended."""
        try:
            code = self._process.wait(max(0.1, until - time.monotonic()))
            ending = f"exit code {code}" if code else "done"
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # torch's compilers too
            self._process.wait()
            ending = "STOPPED at its time limit"
        self._reader.join()
        self._book.note(f"{self.name}: {ending} after {time.monotonic() - self._began:.0f} s")


class Day:
    """The parts, one after the other."""

    def __init__(self, args: argparse.Namespace, book: Book, scratch: Path) -> None:
        self._args, self._book, self._scratch = args, book, scratch
        self._deadline = time.monotonic() + args.seconds
        self._programs = programs(smoke=args.smoke)
        self._go = scratch / "go"
        self._autotuned = scratch / "autotune.txtpb"
        self._flags = {"XLA_FLAGS": NO_BUFFERS + str(self._autotuned)}

    def run(self) -> None:
        """All of them; what there is no time for is noted."""
        try:
            self._measure(self._compile())
            for name, environment in (("traces", self._flags), ("decode", {})):
                if self._time_left(name):
                    self._child(name, **environment).close(self._until(name))
        finally:
            self._keep_autotuning()

    def _compile(self) -> Child | None:
        """Compiles everything; returns nanochat's process where it waits to be measured."""
        peer = self._peer()
        until = self._until("compile")
        growing = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        groups: dict[str, list[str]] = {}
        for name, program in self._programs.items():
            groups.setdefault(program.group, []).append(name)
        compiling = [self._child("compile", *names, **growing) for names in groups.values()]
        traced = [name for name in TRACED if name in self._programs]
        compiling.append(self._child("compile", "decode", **growing))
        compiling.append(
            self._child(
                "compile",
                *traced[:3],
                "decode",
                "--nice",
                "10",
                **growing,
                **self._flags,
                extra={"kind": "compiled for its trace"},
            )
        )  # fmt: skip
        for child in compiling:
            child.close(until)
        ready = self._go.with_suffix(".ready")
        while peer and not ready.exists() and not peer.ended() and time.monotonic() < until:
            time.sleep(0.1)
        if peer and not ready.exists():
            peer.close(0)
            return None
        return peer

    def _peer(self) -> Child | None:
        if not self._args.nanochat:
            self._book.note("nanochat: no --nanochat CHECKOUT given, left out")
            return None
        program = next(iter(self._programs.values()))  # tier 100's
        case = {**asdict(program.case), "rows": program.case.rows, "micro": program.case.micro}
        command = [
            str(self._args.torch_python), str(BENCH / "nanochat_step.py"),
            str(self._args.nanochat), json.dumps(case), str(self._args.steps), str(self._go),
        ]  # fmt: skip
        extra = {"kind": "step", "name": "nanochat", "device": gpu_name()}
        return Child("nanochat", command, self._book, extra)

    def _measure(self, peer: Child | None) -> None:
        if peer:
            self._go.touch()
            peer.close(self._until("nanochat"))
        compiled = {r["name"] for r in self._book.results if r["kind"] == "compiled"}
        for name in self._programs.keys() - compiled:
            self._book.note(f"{name}: not compiled")
        names = [name for name in self._programs if name in compiled]
        if self._time_left("steps"):
            self._child("steps", *names).close(self._until("steps"))

    def _child(
        self, part: str, *names: str, extra: dict[str, Any] | None = None, **environment: str
    ) -> Child:
        command = [sys.executable, str(BENCH / "gpu_parts.py"), part, *names]
        command += ["--out", str(self._args.out), "--steps", str(self._args.steps)]
        command += ["--cache", str(self._scratch / "programs")]
        command += ["--smoke"] if self._args.smoke else []
        return Child(" ".join([part, *names[:1]]), command, self._book, extra, **environment)

    def _until(self, part: str) -> float:
        """When a part that begins now is stopped."""
        limit, later = LIMITS[part], LATER[part]
        if self._args.smoke:
            limit, later = self._args.seconds, 0.0
        return min(time.monotonic() + limit, self._deadline - later)

    def _time_left(self, part: str) -> bool:
        enough = self._until(part) - time.monotonic() > 15
        if not enough:
            self._book.note(f"{part}: no time left")
        return enough

    def _keep_autotuning(self) -> None:
        folders = (self._scratch / "programs").glob("xla_gpu_*")
        kept = [path for path in (self._autotuned, *folders) if path.exists()]
        if kept:
            archive(self._args.out / "autotune.tgz", kept)


def archive(file: Path, paths: Sequence[Path]) -> None:
    """Packs files and folders; a result over ARCHIVE_BYTES is too large to come back."""
    with tarfile.open(file, "w:gz", compresslevel=6) as tar:
        for path in paths:
            tar.add(path, arcname=path.name)
    if file.stat().st_size > ARCHIVE_BYTES:
        measure.log(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB is over 12 MiB")


def gpu_name() -> str:
    """The first GPU as the driver names it; "cpu" where there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "cpu"
    return done.stdout.splitlines()[0].strip()


if __name__ == "__main__":
    sys.exit(main())
