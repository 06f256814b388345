"""Several processes of one run on this machine, each with its share of the devices.

python launch/local.py -n 2 -- --tier cpu --set mesh.host_devices=4     # 2 processes, 8 CPU devices
python launch/local.py -n 2 -- --tier 100                               # 4 of 8 GPUs each

What follows -- goes to run_speedrun.py. Every line is printed with the number of its process.
When one process has ended, so have all soon after: first they are let, then asked (SIGTERM), then
killed. Ctrl-C, SIGTERM and SIGUSR1 are passed on. The exit code is that of the process that failed
first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "run_speedrun.py"
LET_SECONDS = 15.0  # that the others are given to end by themselves
COLOURS = (36, 33, 32, 35, 34, 31)
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# On a busy machine one process may well wait longer for another than XLA's 30 seconds.
PATIENCE = (
    "--xla_cpu_collective_timeout_seconds=600 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the processes, prints what they print, and returns the exit code."""
    args = parse(argv)
    cards = visible_gpus()
    if cards and len(cards) % args.n:
        print(f"local.py: {len(cards)} GPUs do not divide by {args.n} processes.", file=sys.stderr)
        return 2
    port = args.port or free_port()
    command = [sys.executable, str(args.script), *args.arguments]
    group = Processes(args.grace)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: group.ask(number))
    for index in range(args.n):
        group.start(command, environment(index, args.n, port, cards))
    return group.wait()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, required=True, help="how many processes")
    parser.add_argument(
        "--port", type=int, help="where they meet, with the one above (default: free)"
    )
    parser.add_argument(
        "--grace", type=float, default=120.0, metavar="SECONDS",
        help="from SIGTERM, which saves, to SIGKILL (default 120)",
    )  # fmt: skip
    parser.add_argument("--script", type=Path, default=SCRIPT, help="instead of run_speedrun.py")
    parser.add_argument("arguments", nargs="*", metavar="-- ARGS", help="of run_speedrun.py")
    args = parser.parse_args(argv)
    if args.n < 1:
        parser.error(f"-n is {args.n}; it must be 1 or more")
    return args


def visible_gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them; none where there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(n) for n, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


def free_port() -> int:
    """A port that is free, as is the one above."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port


def environment(index: int, size: int, port: int, cards: Sequence[str]) -> dict[str, str]:
    """The environment of process `index`, with its share of the GPUs."""
    own = {
        "JAXCHAT_COORDINATOR": f"127.0.0.1:{port}",
        "JAXCHAT_PROCESSES": str(size),
        "JAXCHAT_PROCESS": str(index),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{PATIENCE} {os.environ.get('XLA_FLAGS', '')}".strip(),
    }
    if cards:
        share = len(cards) // size
        own["CUDA_VISIBLE_DEVICES"] = ",".join(cards[index * share : (index + 1) * share])
    return {**os.environ, **own}


class Processes:
    """The children."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.children: list[subprocess.Popen[bytes]] = []
        self.readers: list[threading.Thread] = []
        self.codes: list[int] = []  # of those that have ended, in that order
        self.asked: float | None = None  # when they were asked to end

    def start(self, command: Sequence[str], environ: dict[str, str]) -> None:
        """Starts one, in a session of its own: a Ctrl-C reaches it through `ask` alone."""
        child = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        index = len(self.children)
        self.children.append(child)
        reader = threading.Thread(target=print_lines, args=(child, prefix(index)), daemon=True)
        reader.start()
        self.readers.append(reader)
        threading.Thread(target=lambda: self.codes.append(child.wait()), daemon=True).start()

    def ask(self, number: int) -> None:
        """Passes a signal on to those that live."""
        if self.asked is None:
            self.asked = time.monotonic()
        for child in self.children:
            if child.poll() is None:
                child.send_signal(number)

    def wait(self) -> int:
        """Until all have ended; the code of the first that failed, as a shell has it."""
        first_end: float | None = None
        while len(self.codes) < len(self.children):
            time.sleep(0.05)
            now = time.monotonic()
            if self.codes and first_end is None:
                first_end = now
            if self.asked is None and first_end is not None and now > first_end + LET_SECONDS:
                self.ask(signal.SIGTERM)
            if self.asked is not None and now > self.asked + self.grace:
                self.ask(signal.SIGKILL)
        for reader in self.readers:
            reader.join(timeout=5.0)
        code = next(filter(None, self.codes), 0)
        return code if code >= 0 else 128 - code


def print_lines(child: subprocess.Popen[bytes], before: str) -> None:
    """Prints what a child prints, line by line."""
    assert child.stdout is not None
    for line in child.stdout:
        text = line.decode(errors="replace").rstrip("\n")
        sys.stdout.write(f"{before}{text}\n")  # one call: lines of several threads stay whole
        sys.stdout.flush()


def prefix(index: int) -> str:
    """`[3] `, in a colour where people look."""
    if not sys.stdout.isatty():
        return f"[{index}] "
    return f"\033[{COLOURS[index % len(COLOURS)]}m[{index}]\033[0m "


def end_with_parent() -> None:
    """In the child: if this launcher is killed, it gets SIGTERM (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main())
