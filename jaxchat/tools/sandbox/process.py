"""Starts the launcher of a sandbox and gathers what its program says (layer 1, Linux and others).

No Python code runs between fork and exec: safe in a process with threads, JAX's among them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
GRACE = 5.0  # seconds after the deadline at which the launcher itself is given up

_ROOT = str(Path(__file__).resolve().parents[3])
# A program's sys.path does not name this package's folder, nor does it write bytecode.
_STUB = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from jaxchat.tools.sandbox import launcher; "
    "del sys.path[0]; sys.dont_write_bytecode = True; launcher.main(sys.argv[2:])"
)
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Ending:
    """What the launcher says of its child; see `launcher._watch` for the kinds.

    `kind` may also be "output" (a stream was longer than allowed) or "lost" (no launcher's word).
    """

    kind: str
    number: int = 0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    message: str = ""


@dataclass(frozen=True)
class Order:
    """A program and its bounds, for the launcher.

    `role` and `channel` (file descriptors to read and to write): see `remote`.
    """

    source: str
    stdin: str
    seconds: float
    memory_bytes: int
    output_bytes: int
    mechanisms: tuple[str, ...]
    as_user: bool
    role: str = ""
    channel: tuple[int, ...] = ()


def command() -> list[str]:
    """The start of the launcher's command line."""
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _STUB, _ROOT]


def run(order: Order) -> tuple[Ending, bytes, bytes]:
    """Runs a program to its end; returns that, its standard output and its standard error.

    The descriptors of `order.channel` are closed here once the child has them. Whatever is
    raised here, the program is gone by then.
    """
    read, write = os.pipe()
    arguments = [
        "run", str(write), str(order.seconds), str(order.memory_bytes),
        "user" if order.as_user else "root", ",".join(order.mechanisms), order.role,
        ",".join(map(str, order.channel)),
    ]  # fmt: skip
    try:
        started = subprocess.Popen(
            [*command(), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, pass_fds=(write, *order.channel), env=ENVIRONMENT, cwd="/",
            start_new_session=True, bufsize=0,
        )  # fmt: skip
    except BaseException:
        os.close(read)
        raise
    finally:
        for descriptor in (write, *order.channel):
            os.close(descriptor)
    try:
        with contextlib.suppress(BrokenPipeError):
            _tell(started, order)
        return _listen(started, read, order)
    finally:
        os.close(read)
        _end(started)


def _tell(started: subprocess.Popen[bytes], order: Order) -> None:
    assert started.stdin is not None
    source, stdin = (text.encode(errors="replace") for text in (order.source, order.stdin))
    rest = memoryview(b"%d %d\n" % (len(source), len(stdin)) + source + stdin)
    while rest:
        rest = rest[started.stdin.write(rest) :]


def _listen(
    started: subprocess.Popen[bytes], report: int, order: Order
) -> tuple[Ending, bytes, bytes]:
    """Reads until the launcher has reported; a stream that is too long ends the program."""
    assert started.stdin is not None
    out, err = (stream.fileno() for stream in (started.stdout, started.stderr) if stream)
    heard: dict[int, bytearray] = {out: bytearray(), err: bytearray(), report: bytearray()}
    deadline = time.monotonic() + order.seconds + GRACE
    flooded = False
    with selectors.DefaultSelector() as selector:
        for descriptor in heard:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        reported = False
        while not reported:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events:
                break
            for key, _ in events:
                if not _read_into(heard[key.fd], key.fd, order.output_bytes):
                    selector.unregister(key.fd)
                    reported |= key.fd == report
            if not flooded and max(len(heard[out]), len(heard[err])) > order.output_bytes:
                flooded = True
                started.stdin.close()  # the launcher takes it as the order to kill
    for descriptor in (out, err):  # what was said between the last look and the end
        while _read_into(heard[descriptor], descriptor, order.output_bytes, wait=False):
            pass
    ending = _parse(bytes(heard[report]))
    flooded |= max(len(heard[out]), len(heard[err])) > order.output_bytes
    if flooded:
        ending = Ending("output", cpu_seconds=ending.cpu_seconds, peak_bytes=ending.peak_bytes)
    return ending, bytes(heard[out][: order.output_bytes]), bytes(heard[err][: order.output_bytes])


def _read_into(heard: bytearray, descriptor: int, most: int, wait: bool = True) -> bool:
    """Takes what there is; False at the end. What goes beyond `most` is read and dropped."""
    try:
        piece = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return wait
    heard += piece[: max(0, most + 1 - len(heard))]
    return bool(piece)


def _parse(report: bytes) -> Ending:
    parts = report.decode(errors="replace").split(" ", 4)
    if len(parts) < 4:
        return Ending("lost")
    kind, number, cpu, peak, *message = parts
    return Ending(kind, int(number), float(cpu), int(peak), "".join(message))


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
    found = {}
    for line in done.stdout.decode().splitlines():
        way, _, names = line.partition(" ")
        found[way] = [name for name in names.split(",") if name]
    return found
