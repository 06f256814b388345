"""The other end of `sandbox.run_python`: makes a locked process and watches it (layer 1).

    python -I -S -c "..." run STATUS SECONDS MEMORY USER MECHANISMS ROLE CHANNEL  < program
    python -I -S -c "..." probe

The launcher stays outside: it is trusted and owns the deadline. Its child locks itself in and only
then compiles the program, inside the interpreter that is there already; so the filter can forbid
to execute anything. The child is gone when the launcher is: if the launcher dies, the kernel
kills the child; if whoever started the launcher dies or closes its input, the launcher does.

It is started anew for every program, so it imports as little as it can; all of it before the
child is made, which may take the root folder away.
"""

from __future__ import annotations

import functools
import io
import os
import select
import signal
import sys
import time
import types

from jaxchat.tools.sandbox import confine, namespaces, remote

TYPE_CHECKING = False  # as in kernel.py
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

MEMORY_EXIT = 86  # of a program that ended with MemoryError
SETUP_EXIT = 87  # of a child that could not lock itself in
_FILENAME = "<program>"


class Job:
    """What the command line and the standard input ask for."""

    def __init__(self, arguments: list[str]) -> None:
        self.status, seconds, memory, as_user, mechanisms, self.role, channel = arguments
        self.seconds, self.memory = float(seconds), int(memory)
        self.as_user = as_user == "user"
        self.use: Collection[str] = [name for name in mechanisms.split(",") if name]
        self.channel = tuple(int(part) for part in channel.split(",") if part)
        sizes = _read_line().split()
        self.source, self.stdin = (_read(int(size)).decode() for size in sizes)


def _read(size: int) -> bytes:
    """`size` bytes of the standard input, past Python's buffers."""
    pieces = []
    while size and (piece := os.read(0, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    if arguments[0] == "probe":
        for way in ("root", "user"):
            print(way, ",".join(confine.available(way == "user")), flush=True)
        return
    job = Job(arguments[1:])
    report = int(job.status)
    ready, told = os.pipe()
    try:
        namespaces.enter(job.use, job.as_user)
    except OSError as error:
        os.write(report, f"refused 0 0 0 {error}".encode())
        return
    woken = _wake_on_child()
    quiet = os.open(os.devnull, os.O_RDWR)  # now: the child takes the root folder away
    user = namespaces.UID_BASE + os.getpid()
    child = os.fork()
    if child == 0:
        _child(job, user, told, {report, ready, quiet, *woken})
        return
    os.close(told)
    for stream in (1, 2):  # their ends are the program's alone
        os.dup2(quiet, stream)
    for end in job.channel:
        os.close(end)
    os.write(report, _watch(child, job.seconds, woken[0], ready).encode())


def _wake_on_child() -> tuple[int, int]:
    """A pipe that can be read as soon as a child has ended."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read, write


def _watch(child: int, seconds: float, woken: int, ready: int) -> str:
    """Waits for the child, kills it at the deadline, and says how it ended.

    "what number cpu_seconds peak_bytes message", what being refused, exit, signal, timeout or
    stopped (the standard input was closed).
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(woken, select.POLLIN)
    deadline = time.monotonic() + seconds
    forced, ended = "", 0
    while not ended:
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0, left) * 1000))
        if 0 in events or not events:
            forced = "stopped" if 0 in events else "timeout"
            os.kill(child, signal.SIGKILL)
        else:
            os.read(woken, 64)  # it may only have been halted
        ended, status, used = os.wait4(child, 0 if forced else os.WNOHANG)
    message = os.read(ready, 1000).decode()
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    code = os.waitstatus_to_exitcode(status)
    if message != "ready":
        what = "refused"
    else:
        what, message = forced or ("signal" if code < 0 else "exit"), ""
    return f"{what} {abs(code)} {cpu:.4f} {peak} {message}"


def _child(job: Job, user: int, told: int, others: set[int]) -> None:
    """Locks this process in and runs the program, whose end is this process's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    keep = {0, 1, 2, told, *job.channel}
    for descriptor in range(3, max(keep | others) + 8):
        if descriptor not in keep:
            os.closerange(descriptor, descriptor + 1)  # which does not mind if it is closed
    try:
        confine.lock(job.use, job.seconds, job.memory, user)
    except Exception as error:
        os.write(told, (str(error) or type(error).__name__).encode()[:1000])
        os._exit(SETUP_EXIT)
    os.write(told, b"ready")
    os.close(told)
    _run(job)


def _run(job: Job) -> None:
    """The program as `__main__`, then its part in a conversation, if it has one (`remote`).

    A program that serves its functions is imported, as it were: it has another `__name__`.
    """
    sys.argv = [_FILENAME]
    sys.stdin = io.StringIO(job.stdin)
    module = types.ModuleType("program" if job.role == remote.SERVE else "__main__")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    try:
        if job.role:
            read, write = job.channel
            run = functools.partial(execute, job.source, module.__dict__)
            remote.take_part(job.role, read, write, module.__dict__, run)
        else:
            execute(job.source, module.__dict__)
    except SystemExit:
        raise
    except MemoryError:
        os._exit(MEMORY_EXIT)
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:  # not ours to show
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)


def execute(source: str, namespace: dict[str, Any]) -> None:
    """Runs a program in the process that has locked itself in; nowhere else."""
    exec(compile(source, _FILENAME, "exec", dont_inherit=True), namespace)
