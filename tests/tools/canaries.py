"""What a hostile program would like to reach: a file, a process, sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from jaxchat.tools.sandbox import launcher

SECRET = "canary of jaxchat's tests"


class Canaries:
    """All of them, their names for programs, and whether they still live."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.file = folder / "canary"
        self.file.write_text(SECRET)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], env={"SECRET": SECRET}
        )
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)
        abstract = f"jaxchat-{uuid.uuid4().hex}"
        path = str(folder / "socket")
        self.listening = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))),
            stack.enter_context(socket.socket(socket.AF_UNIX)),
            stack.enter_context(socket.socket(socket.AF_UNIX)),
        ]
        self.listening[1].bind(path)
        self.listening[2].bind(f"\0{abstract}")
        for one in self.listening:
            one.listen()
            one.setblocking(False)
        self.names = {
            "FILE": str(self.file),
            "HOME": home if (home := os.path.expanduser("~")) != "/tmp" else "/home",
            "PID": str(self.process.pid),
            "PORT": str(self.listening[0].getsockname()[1]),
            "UNIX": path,
            "ABSTRACT": abstract,
            "LAUNCHER": launcher.__file__,
        }
        self.before = self._state()

    def _state(self) -> tuple[object, ...]:
        found = self.file.stat()
        times = found.st_mtime_ns, found.st_ctime_ns
        return self.file.read_text(), found.st_mode, found.st_nlink, times, self._neighbours()

    def _neighbours(self) -> list[str]:
        return sorted(path.name for path in self.file.parent.iterdir())

    def harmed(self) -> list[str]:
        """What has happened to them; nothing, one hopes."""
        found = []
        if self._state() != self.before:
            found.append(f"the file or its folder: {self._state()}, before {self.before}")
        if self.process.poll() is not None:
            found.append(f"the process ended with {self.process.returncode}")
        for one in self.listening:
            with contextlib.suppress(BlockingIOError):
                found.append(f"a connection to {one.accept()[0].getsockname()!r}")
        return found


@contextlib.contextmanager
def set_out(folder: Path) -> Iterator[Canaries]:
    """Canaries in a folder of their own."""
    with contextlib.ExitStack() as stack:
        yield Canaries(folder, stack)
