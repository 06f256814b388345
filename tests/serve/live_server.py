"""A real server on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from jaxchat.config import ServeConfig
from jaxchat.serve.app import create_app
from jaxchat.serve.models import ServedModel, Serves
from jaxchat.serve.process import Server, listen
from jaxchat.serve.scheduler import Scheduler


@dataclasses.dataclass(frozen=True)
class LiveServer:
    """Where it is, and what it serves."""

    url: str  # http://127.0.0.1:PORT
    models: Sequence[ServedModel]
    scheduler: Scheduler

    @property
    def api(self) -> str:
        """The base URL for the openai package."""
        return f"{self.url}/v1"


def slowed(model: ServedModel, seconds: float) -> ServedModel:
    """The model, with an engine that pauses so long before every dispatch (of 8 tokens)."""

    def open_engine() -> Serves:
        engine: Any = model.open_engine()
        step = engine.step

        def slow_step() -> bool:
            time.sleep(seconds)
            return bool(step())

        engine.step = slow_step
        return engine

    return dataclasses.replace(model, open_engine=open_engine)


@contextmanager
def serve(
    models: Sequence[ServedModel], *, key: str | None = None, **settings: object
) -> Iterator[LiveServer]:
    """Serves models while open; `settings` are those of ServeConfig."""
    config = ServeConfig(**{"port": 0, "grace_seconds": 0.5, **settings})
    app = create_app(models, config, key=key)
    server, sock = Server(app, config), listen(config)
    port = sock.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, thread)
        yield LiveServer(url, models, app.state.scheduler)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def _wait_until_ready(url: str, thread: threading.Thread) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert thread.is_alive(), "the server ended at its start"
            try:
                if client.get(f"{url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise AssertionError("the server did not become ready")
