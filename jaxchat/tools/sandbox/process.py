"""Starts the launcher of a sandbox and collects the output of its program (Linux and others).

No Python code runs between fork and exec: safe in a process with threads, JAX's among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
GRACE = 5.0  # seconds after the deadline at which the launcher itself is given up

TIMEOUT = 5.0  # seconds
MEMORY_BYTES = 256 * 2**20  # the interpreter's 20 MB included
OUTPUT_BYTES = 64 * 2**10  # of each stream

_ROOT = str(Path(__file__).resolve().parents[3])
# A program's sys.path does not name this package's folder, nor does it write bytecode.
_STUB = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from jaxchat.tools.sandbox import launcher; "
    "del sys.path[0]; sys.dont_write_bytecode = True; launcher.main(sys.argv[2:])"
)
_CHUNK = 1 << 16


class Ending(NamedTuple):
    """How a program ended, as the launcher reports it; `launcher._watch` has the kinds.

    Two kinds come from this side: "output" (a stream exceeded its limit) and "lost" (the launcher
    died without a report).
    """

    kind: str
    number: int = 0  # exit code or signal
    cpu_seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Program:
    """A program and its bounds. Raises ValueError for a bound that is not above 0."""

    source: str  # Python, run as `__main__` with the standard library alone
    timeout: float = TIMEOUT  # seconds of the wall clock
    memory_bytes: int = MEMORY_BYTES  # of address space
    output_bytes: int = OUTPUT_BYTES  # of the standard output, and as much of the standard error
    stdin: str = ""  # what `input()` and `sys.stdin` read
    role: str = ""  # see `remote`
    channel: tuple[int, ...] = ()  # descriptors to read and to write, see `remote`

    def __post_init__(self) -> None:
        for name in ("timeout", "memory_bytes", "output_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a program is above 0, not {getattr(self, name)}")


def command() -> list[str]:
    """The start of the launcher's command line."""
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _STUB, _ROOT]


def run(program: Program, mechanisms: Sequence[str], as_user: bool) -> tuple[Ending, bytes, bytes]:
    """Runs a program to its end; returns that, its standard output and its standard error.

    The descriptors of `program.channel` are closed here once the child has them. If anything is
    raised here, the program has been killed first.
    """
    read, write = os.pipe()
    order = {**vars(program), "report": write, "use": mechanisms, "as_user": as_user}
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    passed = (write, *program.channel)
    try:
        started = subprocess.Popen(
            [*command(), "run"], **pipes, pass_fds=passed, env=ENVIRONMENT, cwd="/",
            start_new_session=True, bufsize=0,
        )  # fmt: skip
    except BaseException:
        os.close(read)
        raise
    finally:
        close(passed)
    try:
        with contextlib.suppress(BrokenPipeError):
            _send(started, json.dumps(order, ensure_ascii=False))
        return _listen(started, read, program)
    finally:
        os.close(read)
        _end(started)


def close(descriptors: Sequence[int]) -> None:
    """Closes descriptors that a child was to have."""
    for descriptor in descriptors:
        os.close(descriptor)


def _send(started: subprocess.Popen[bytes], line: str) -> None:
    assert started.stdin is not None
    rest = memoryview(line.encode(errors="replace") + b"\n")
    while rest:
        rest = rest[started.stdin.write(rest) :]


def _listen(
    started: subprocess.Popen[bytes], report: int, program: Program
) -> tuple[Ending, bytes, bytes]:
    """Reads until the launcher has reported; a stream over its limit ends the program."""
    assert started.stdin is not None
    out, err = (stream.fileno() for stream in (started.stdout, started.stderr) if stream)
    most = program.output_bytes
    read: dict[int, bytearray] = {out: bytearray(), err: bytearray(), report: bytearray()}
    deadline = time.monotonic() + program.timeout + GRACE
    with selectors.DefaultSelector() as selector:
        for descriptor in read:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while report in selector.get_map():
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events:
                break
            for key, _ in events:
                if not _read_into(read[key.fd], key.fd, _CHUNK if key.fd == report else most):
                    selector.unregister(key.fd)
            if max(len(read[out]), len(read[err])) > most:
                started.stdin.close()  # the launcher takes it as the order to kill
    for descriptor in (out, err):  # what was written between the last look and the end
        while _read_into(read[descriptor], descriptor, most, wait=False):
            pass
    ending = Ending(*json.loads(read[report])) if read[report] else Ending("lost")
    if max(len(read[out]), len(read[err])) > most:
        ending = Ending("output", cpu_seconds=ending.cpu_seconds)
    return ending, bytes(read[out][:most]), bytes(read[err][:most])


def _read_into(read: bytearray, descriptor: int, most: int, wait: bool = True) -> bool:
    """Appends what is there; False at the end. What goes beyond `most` is read and dropped."""
    try:
        piece = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return wait
    read += piece[: max(0, most + 1 - len(read))]
    return bool(piece)


def _end(started: subprocess.Popen[bytes]) -> None:
    """Makes sure that nothing is left: of its process group here, of its child by the kernel."""
    for stream in (started.stdin, started.stdout, started.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def probe() -> dict[str, list[str]]:
    """What the launcher finds to work here, as "root" and as "user"; empty if it cannot start."""
    try:
        done = subprocess.run(
            [*command(), "probe"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/", start_new_session=True,
            timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found
