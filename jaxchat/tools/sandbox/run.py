"""Runs Python programs that nobody has read: a model's (layer 1).

    outcome = run_python("print(6 * 7)", timeout=5)
    outcome.status, outcome.stdout         # "ok", "42\\n"

Each runs in a process of its own that has locked itself in (`confine`), watched by another
(`launcher`). A program can compute, start threads, and read Python's standard library; it can
write into an empty /tmp of its own that goes with it. It has no network, no other processes, no
other files. docs/sandbox.md has what hostile programs tried. Where the machine cannot lock a
program in, nothing is run, unless the caller says `unsafe=True`.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxchat.tools.sandbox import launcher, levels, limits, process

Status = Literal["ok", "error", "timeout", "memory", "output", "killed", "refused"]

TIMEOUT = 5.0  # seconds
MEMORY_BYTES = 256 * 2**20  # the interpreter's 20 MB among them
OUTPUT_BYTES = 64 * 2**10  # of each stream


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    ok        to its end, or by exit code 0
    error     by an exception or another exit code
    timeout   killed at the deadline, or when it had used the processor for that long
    memory    it asked for more memory than it was given
    output    killed because it wrote too much; the first of it is kept
    killed    by a signal, such as that of a crash
    refused   not run: this machine cannot lock it in

    `seconds` is wall-clock time with the start of its interpreter, `cpu_seconds` the program's
    own. `reason` is a sentence, empty for ok.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float
    reason: str
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A program and its bounds, as `run_python` takes them; `role` and `channel` as in `remote`."""

    source: str
    timeout: float = TIMEOUT
    memory_bytes: int = MEMORY_BYTES
    output_bytes: int = OUTPUT_BYTES
    stdin: str = ""
    role: str = ""
    channel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("timeout", "memory_bytes", "output_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a program is above 0, not {getattr(self, name)}")


def run_python(
    source: str,
    *,
    timeout: float = TIMEOUT,
    memory_bytes: int = MEMORY_BYTES,
    output_bytes: int = OUTPUT_BYTES,
    stdin: str = "",
    unsafe: bool = False,
) -> Outcome:
    """Runs a program to its end, or to the first of its bounds.

    Args:
        source: Python, run as `__main__` with the standard library alone.
        timeout: seconds of the wall clock.
        memory_bytes: of address space.
        output_bytes: of the standard output, and as much of the standard error.
        stdin: what `input()` and `sys.stdin` read.
        unsafe: run it even where it cannot be locked in.

    Never raises for what the program does; ValueError for bounds that are none.
    """
    return run_job(Job(source, timeout, memory_bytes, output_bytes, stdin), unsafe=unsafe)


def run_many(
    jobs: Sequence[Job], *, workers: int | None = None, unsafe: bool = False
) -> Iterator[Outcome]:
    """The outcomes of many programs, in order, `workers` (by default the cores) at a time."""
    with concurrent.futures.ThreadPoolExecutor(workers or cores()) as pool:
        waiting = [pool.submit(run_job, job, unsafe=unsafe) for job in jobs]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()


def cores() -> int:
    """How many programs run at once, unless said otherwise."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_job(job: Job, *, unsafe: bool = False, level: levels.Level | None = None) -> Outcome:
    """`run_python` of a Job; `level` for tests, which try what others have."""
    level = level or levels.detect()
    if level.name == "none" and not unsafe:
        _close(job.channel)
        return Outcome("refused", "", "", 0.0, REFUSAL)
    order = process.Order(
        job.source, job.stdin, job.timeout, job.memory_bytes, job.output_bytes,
        level.mechanisms, level.as_user, job.role, job.channel,
    )  # fmt: skip
    began = time.monotonic()
    ending, out, err = process.run(order)
    seconds = time.monotonic() - began
    texts = [stream.decode(errors="replace") for stream in (out, err)]
    status, reason = _explain(ending, texts[1], job)
    return Outcome(status, texts[0], texts[1], seconds, reason, ending.cpu_seconds)


REFUSAL = (
    "this machine cannot lock a program in (jaxchat doctor says what is missing), so none is run; "
    "--unsafe-exec runs it all the same"
)


def _close(channel: tuple[int, ...]) -> None:
    for descriptor in channel:
        os.close(descriptor)


def _explain(ending: process.Ending, err: str, job: Job) -> tuple[Status, str]:
    """The status and the reason of an ending."""
    last = err.strip().rpartition("\n")[2].strip()
    if ending.kind == "output":
        return "output", f"it wrote more than {job.output_bytes:,} bytes"
    exhausted = ending.cpu_seconds > limits.cpu_seconds(job.timeout) - 0.5
    if ending.kind == "timeout" or (ending.kind == "signal" and exhausted):
        return "timeout", f"it was not done after {job.timeout:g} seconds"
    if ending.kind == "refused":
        return "refused", f"it could not be locked in ({ending.message}), so it was not run"
    if ending.kind == "exit" and ending.number == launcher.MEMORY_EXIT:
        return "memory", f"it asked for more than its {job.memory_bytes:,} bytes of memory"
    if ending.kind == "exit" and ending.number:
        return "error", last or f"it ended with exit code {ending.number}"
    if ending.kind == "exit":
        return "ok", ""
    if ending.kind == "signal":
        return "killed", f"it was killed by signal {ending.number} ({_signal(ending.number)})"
    return "killed", "the process that watched it is gone"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"
