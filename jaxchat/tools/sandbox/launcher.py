"""The launcher of a sandbox (`process` starts it): makes a sandboxed process and watches it.

    python -I -S -c "..." run    < an Order, as a line of JSON
    python -I -S -c "..." probe

The launcher stays outside: it is trusted and owns the deadline. Its child sandboxes itself and only
then compiles the program, inside the interpreter that is there already; so the filter can forbid
executing anything. The child never outlives the launcher: if the launcher dies, the kernel kills
the child; if the process that started the launcher dies or closes its input, the launcher does.

Every program gets a launcher of its own, so it imports as little as it can; all of it before the
child is made, which may take the root folder away.
"""

from __future__ import annotations

import functools
import io
import json
import os
import select
import signal
import sys
import time
import types

from jaxchat.tools.sandbox import confine, namespaces, remote

MEMORY_EXIT = 86  # of a program that ended with MemoryError
SETUP_EXIT = 87  # of a child that could not sandbox itself
_FILENAME = "<program>"


class Order:
    """A `process.Program`, and how it is run. Read from the standard input, past its buffers."""

    source: str
    timeout: float
    memory_bytes: int
    stdin: str
    role: str
    channel: list[int]
    report: int  # the descriptor to which the launcher reports
    use: list[str]  # the mechanisms
    as_user: bool  # makes namespaces inside a user namespace

    def __init__(self) -> None:
        line = b""
        while not line.endswith(b"\n") and (piece := os.read(0, 1 << 16)):
            line += piece
        self.__dict__.update(json.loads(line))


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    if arguments[0] == "probe":
        for way in ("root", "user"):
            print(json.dumps({way: confine.available(way == "user")}), flush=True)
        return
    order = Order()
    ready, setup = os.pipe()
    try:
        namespaces.enter(order.use, order.as_user)
    except OSError as error:
        os.write(order.report, json.dumps(["refused", 0, 0, str(error)]).encode())
        return
    woken = _wake_on_child()
    quiet = os.open(os.devnull, os.O_RDWR)  # now: the child takes the root folder away
    user = namespaces.UID_BASE + os.getpid()
    child = os.fork()
    if child == 0:
        _child(order, user, setup, {order.report, ready, quiet, *woken})
        return
    os.close(setup)
    for stream in (1, 2):  # their ends are the program's alone
        os.dup2(quiet, stream)
    for end in order.channel:
        os.close(end)
    os.write(order.report, json.dumps(_watch(child, order.timeout, woken[0], ready)).encode())


def _wake_on_child() -> tuple[int, int]:
    """A pipe that can be read as soon as a child has ended."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read, write


def _watch(child: int, seconds: float, woken: int, ready: int) -> tuple[str, int, float, str]:
    """Waits for the child, kills it at the deadline, and returns how it ended.

    That is a `process.Ending`, its kind being refused, exit, signal, timeout or stopped (the
    standard input was closed).
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
    code = os.waitstatus_to_exitcode(status)
    if message != "ready":
        kind = "refused"
    else:
        kind, message = forced or ("signal" if code < 0 else "exit"), ""
    return kind, abs(code), used.ru_utime + used.ru_stime, message


def _child(order: Order, user: int, setup: int, others: set[int]) -> None:
    """Sandboxes this process and runs the program, whose end is this process's."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    keep = {0, 1, 2, setup, *order.channel}
    for descriptor in {*range(3, max(keep | others) + 8)} - keep:
        os.closerange(descriptor, descriptor + 1)  # which does not mind if it is closed
    try:
        confine.enter_sandbox(order.use, order.timeout, order.memory_bytes, user)
    except Exception as error:
        os.write(setup, (str(error) or type(error).__name__).encode()[:1000])
        os._exit(SETUP_EXIT)
    os.write(setup, b"ready")
    os.close(setup)
    _run(order)


def _run(order: Order) -> None:
    """The program as `__main__`, then its part in a conversation, if it has one (`remote`).

    A program that serves its functions is imported, as it were: it has another `__name__`.
    """
    sys.argv = [_FILENAME]
    sys.stdin = io.StringIO(order.stdin)
    module = types.ModuleType("program" if order.role == remote.SERVE else "__main__")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    try:
        if order.role:
            read, write = order.channel
            run = functools.partial(execute, order.source, module.__dict__)
            remote.take_part(order.role, read, write, module.__dict__, run)
        else:
            execute(order.source, module.__dict__)
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


def execute(source: str, namespace: dict[str, object]) -> None:
    """Runs a program in the process that has sandboxed itself; nowhere else."""
    exec(compile(source, _FILENAME, "exec", dont_inherit=True), namespace)
