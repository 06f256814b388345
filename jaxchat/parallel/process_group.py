"""Host-side control channel of a multi-process run.

Process 0 leads: it listens, and each of the others has a connection to it, on which lines of JSON
go both ways. It serves three purposes that `jax.distributed` does not: waiting for hours while
process 0 works alone, reporting a failure once and in words, and ending all processes when one has
ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxchat.errors import GroupError
from jaxchat.signals import REQUEUE

START_SECONDS = 300.0  # for the processes to find each other
ERROR_GRACE_SECONDS = 3.0  # wait for the root cause before a secondary error is reported
END_SECONDS = 5.0  # for the others to exit before process 0 does
ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 45_000}


@dataclass(frozen=True)
class ProcessSpec:
    """This process's number among how many, and the address where they meet."""

    host: str
    port: int  # of `jax.distributed`; the group uses the one above
    size: int
    index: int


class ProcessGroup:
    """A process alone; `_Leader` and `_Follower` are those of several processes."""

    index, size = 0, 1
    _closing = False

    @property
    def leads(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (JSON), in the order of their numbers; collective."""
        return [value]

    def broadcast(self, value: Any = None) -> Any:
        """Process 0's value; collective, and waits for all."""
        return self.gather(value)[0]

    def fail(self, text: str, code: int, *, certain: bool) -> None:
        """Ends all other processes: see `end`."""

    def close(self) -> None:
        """Orderly shutdown; collective."""
        self._closing = True
        self.gather(None)


ALONE = ProcessGroup()


def join(spec: ProcessSpec, seconds: float = START_SECONDS) -> ProcessGroup:
    """Connects the processes. Raises GroupError when some have not connected in time."""
    return _Leader(spec, seconds) if spec.index == 0 else _Follower(spec, seconds)


def end(group: ProcessGroup, text: str, code: int, *, certain: bool) -> NoReturn:
    """Ends this process and all others with an exit code; `text` is printed once, by process 0.

    Where `certain` is false, the error may be a consequence of what happened to another process:
    what that one reports within ERROR_GRACE_SECONDS is printed instead.
    """
    group.fail(text, code, certain=certain)
    _leave(code)


class _Line:
    """A connection that carries lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in ALIVE.items():  # a machine without power is missed within a minute
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._file = connection.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message; when the other end is gone, the reader of its line reports that."""
        data = json.dumps(message).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other end is gone."""
        try:
            line = self._file.readline()
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None


class _Leader(ProcessGroup):
    def __init__(self, spec: ProcessSpec, seconds: float) -> None:
        self.size = spec.size
        self._hosts = {0: socket.gethostname()}
        self._lines: dict[int, _Line] = {}
        self._given: dict[int, queue.SimpleQueue[Any]] = {}
        self._left = {index: threading.Event() for index in range(1, spec.size)}
        self._ending = threading.Lock()
        self._meet(spec, time.monotonic() + seconds, seconds)
        for index, line in self._lines.items():
            line.send({"welcome": index})
            reader = threading.Thread(target=self._listen, args=(index, line), daemon=True)
            reader.start()

    def _meet(self, spec: ProcessSpec, deadline: float, seconds: float) -> None:
        with _listening(spec) as server:
            while len(self._lines) < spec.size - 1:
                server.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = [n for n in range(1, spec.size) if n not in self._lines]
                    raise GroupError(
                        f"of {spec.size} processes, {_these(missing)} did not come to "
                        f"{spec.host}:{spec.port + 1} within {seconds:.0f} seconds; start all of "
                        "them, with the same JAXCHAT_COORDINATOR and JAXCHAT_PROCESSES."
                    ) from None
                self._admit(connection, spec)

    def _admit(self, connection: socket.socket, spec: ProcessSpec) -> None:
        """Accepts a process; any other caller is sent away."""
        connection.settimeout(10.0)
        try:
            hello = json.loads(connection.makefile("rb").readline(4096))
            index, size, host = int(hello["process"]), int(hello["of"]), str(hello["host"])
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return
        wrong = ""
        if size != spec.size:
            wrong = (
                f"{host} says there are {size} processes, and process 0 that there are "
                f"{spec.size}; give all the same JAXCHAT_PROCESSES."
            )
        elif index in self._lines:
            wrong = (
                f"{host} and {self._hosts[index]} both say they are process {index}; give each "
                "its own JAXCHAT_PROCESS."
            )
        self._lines.setdefault(index, _Line(connection))
        self._hosts.setdefault(index, host)
        if wrong:
            for line in (*self._lines.values(), _Line(connection)):
                line.send({"end": 2})
            raise GroupError(wrong)
        self._given[index] = queue.SimpleQueue()

    def _listen(self, index: int, line: _Line) -> None:
        while (message := line.receive()) is not None:
            if "value" in message:
                self._given[index].put(message["value"])
            elif "failed" in message:
                text = f"process {index} on {self._hosts[index]}: {message['failed']}"
                self.fail(text, int(message["code"]), certain=bool(message["certain"]), wait=False)
        self._left[index].set()
        if not self._closing:
            lost = _lost(f"process {index} on {self._hosts[index]}")
            self.fail(lost, REQUEUE, certain=True)

    def gather(self, value: Any) -> list[Any]:
        values = [value, *(self._given[index].get() for index in range(1, self.size))]
        for line in self._lines.values():
            line.send({"values": values})
        return values

    def fail(self, text: str, code: int, *, certain: bool, wait: bool = True) -> None:
        """Ends all, at once if `certain`, else after a moment; waits for it if `wait`."""
        if certain:
            self._end(text, code)
        timer = threading.Timer(ERROR_GRACE_SECONDS, self._end, (text, code))
        timer.daemon = True
        timer.start()
        if wait:
            timer.join()

    def _end(self, text: str, code: int) -> NoReturn:
        self._ending.acquire()  # and never released: later callers wait for the end
        print(text, file=sys.__stderr__, flush=True)
        for line in self._lines.values():
            line.send({"end": code})
        deadline = time.monotonic() + END_SECONDS
        for left in self._left.values():
            left.wait(max(0.0, deadline - time.monotonic()))
        _leave(code)


class _Follower(ProcessGroup):
    def __init__(self, spec: ProcessSpec, seconds: float) -> None:
        self.index, self.size = spec.index, spec.size
        self._line = _Line(_connect(spec, seconds))
        self._values: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._leader = f"process 0 on {spec.host}"
        self._line.send({"process": spec.index, "of": spec.size, "host": socket.gethostname()})
        answer = self._line.receive() or {"end": REQUEUE}
        if "end" in answer:
            _leave(int(answer["end"]))  # process 0 prints why
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while (message := self._line.receive()) is not None:
            if "values" in message:
                self._values.put(message["values"])
            elif "end" in message:
                _leave(int(message["end"]))
        if not self._closing:
            if self.index == 1:  # one message is enough
                print(_lost(self._leader), file=sys.__stderr__, flush=True)
            _leave(REQUEUE)

    def gather(self, value: Any) -> list[Any]:
        self._line.send({"value": value})
        return self._values.get()

    def fail(self, text: str, code: int, *, certain: bool) -> None:
        """Asks process 0 to end all; waits for that."""
        self._line.send({"failed": text, "code": code, "certain": certain})
        time.sleep(ERROR_GRACE_SECONDS + END_SECONDS)


def _listening(spec: ProcessSpec) -> socket.socket:
    """Open to the network only where the meeting point is."""
    address = "127.0.0.1" if is_local(spec.host) else ""
    try:
        return socket.create_server((address, spec.port + 1), backlog=spec.size)
    except OSError as error:
        raise GroupError(
            f"process 0 cannot listen on port {spec.port + 1} ({error.strerror}); name another "
            "port in JAXCHAT_COORDINATOR (the one above it is used too)."
        ) from error


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    return host == "localhost" or host.startswith("127.")


def _connect(spec: ProcessSpec, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((spec.host, spec.port + 1), timeout=10.0)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise GroupError(
                    f"process {spec.index} cannot reach process 0 at {spec.host}:"
                    f"{spec.port + 1} ({error.strerror or error}) for {seconds:.0f} seconds; see "
                    "that it runs, that the name is right and that both ports are open."
                ) from error
            time.sleep(0.2)


def _lost(process: str) -> str:
    return (
        f"jaxchat: {process} has ended, killed or with its machine; all others are ended too. Give "
        "the same command again to resume."
    )


def _these(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"number{'s' if len(numbers) > 1 else ''} {shown}"


def _leave(code: int) -> NoReturn:
    """Exits at once, from any thread: the main one may wait for a device that will never answer.

    Nothing is lost: what is on disk is whole at every moment.
    """
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
