"""The server process: its socket, connections, signals and shutdown.

Imports nothing heavy, so that a port in use is reported at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxchat.config.operations import ServeConfig
from jaxchat.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from jaxchat.serve.scheduler import Scheduler

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FLUSH_SECONDS = 2  # in which ended streams are sent
IDLE_SECONDS = 20  # after which a connection without a request is closed
BACKLOG = 512


def listen(config: ServeConfig) -> socket.socket:
    """A socket at the configured address. Raises ConfigError for an address that cannot be used."""
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {config.host} is no address of this machine ({error.strerror}); "
            "use 127.0.0.1, or 0.0.0.0 for all of its addresses."
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = {
            errno.EADDRINUSE: "is in use by another program; end that, or name another with --port",
            errno.EACCES: "is for administrators only; name one above 1023 with --port",
        }.get(error.errno or 0, f"cannot be used ({error.strerror}); use another --host")
        raise ConfigError(f"port {config.port} of {config.host} {why}.") from error
    return sock


def url_of(sock: socket.socket) -> str:
    """The address of a socket for a browser."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Protocol(H11Protocol):
    """HTTP/1.1 with a time limit for the head of the first request."""

    def connection_made(self, transport: Any) -> None:
        """Starts the time limit; between requests uvicorn has its own."""
        super().connection_made(transport)
        self.loop.call_later(IDLE_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Shuts down on a signal: no new requests, a grace period, then errors; at once on a second."""

    def __init__(
        self,
        app: FastAPI,
        config: ServeConfig,
        on_ready: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_ready` is called once, when requests are taken."""
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=config.behind_proxy,
                forwarded_allow_ips="127.0.0.1,::1",
                limit_concurrency=config.connections,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )
        self._scheduler: Scheduler = app.state.scheduler
        self._on_ready, self._was_ready = on_ready, False
        self._grace = config.grace_seconds
        self._signals = 0
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Counts signals; the second ends the process, which has nothing to lose."""
        del frame
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + sig)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while serving, in the main thread, and does not pass them on.

        After one they remain handled: the process ends, and a second signal shall end it as ever.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items() if not self._signals else ():
                signal.signal(number, handler)

    def serve_until_signal(self, sock: socket.socket) -> None:
        """`run` on a socket. A device still at work after the grace period is abandoned."""
        self.run(sockets=[sock])
        if self._scheduler.alive:
            os._exit(0)  # an interpreter that ends under a thread that compiles would crash

    async def on_tick(self, counter: int) -> bool:
        """Checks, ten times a second, whether it is ready, and whether it is time to end."""
        if not self._was_ready and self._scheduler.ready:
            self._was_ready = True
            self._on_ready()
        if self._signals and self._deadline is None:
            self._scheduler.close()
            self._deadline = time.monotonic() + self._grace
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() > self._deadline
            if late:
                self._scheduler.abort()
            self.should_exit = late or self._scheduler.idle
        return await super().on_tick(counter)
