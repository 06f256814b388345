"""The process around the application: its connections, its signals, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxchat.config.operations import ServeConfig
from jaxchat.serve.scheduler import Scheduler

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 2  # seconds in which ended streams are sent
IDLE_SECONDS = 20  # that a connection without a request is kept


class Protocol(H11Protocol):
    """HTTP/1.1, for clients that get to their point: a request's head must come in time."""

    def connection_made(self, transport: Any) -> None:
        """Gives the first request a time limit; between requests uvicorn has its own."""
        super().connection_made(transport)
        self.loop.call_later(IDLE_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Ends in order at a signal: no more requests, a time of grace, then errors; at once at two."""

    def __init__(self, app: FastAPI, config: ServeConfig) -> None:
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
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )
        self._scheduler: Scheduler = app.state.scheduler
        self._grace = config.grace_seconds
        self._signals = 0
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Notes a signal; the second ends the process, which has nothing to lose."""
        del frame
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + sig)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while it serves, in the main thread, and does not pass them on."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def serve_until_told(self, sock: socket.socket) -> None:
        """`run` on a socket. A device that is still at work when the time is over is left alone."""
        self.run(sockets=[sock])
        if self._scheduler.alive:
            os._exit(0)  # an interpreter that ends under a thread that compiles would crash

    async def on_tick(self, counter: int) -> bool:
        """Looks, ten times a second, whether it is time to end."""
        if self._signals and self._deadline is None:
            self._scheduler.close()
            self._deadline = time.monotonic() + self._grace
        if self._deadline is not None and not self.should_exit:
            late = time.monotonic() > self._deadline
            if late:
                self._scheduler.abort()
            self.should_exit = late or self._scheduler.idle
        return await super().on_tick(counter)
