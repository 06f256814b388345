"""A real server on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from jaxchat.config.operations import ServeConfig
from jaxchat.inference.service import Service
from jaxchat.serve.app import create_app
from jaxchat.serve.models import ServedModel
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

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        """Sends JSON; `options` are those of httpx."""
        with httpx.Client(trust_env=False, timeout=120) as client:
            return client.post(f"{self.url}{path}", json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Asks for a path."""
        with httpx.Client(trust_env=False, timeout=120) as client:
            return client.get(f"{self.url}{path}", **options)

    def ask(self, question: str, **body: Any) -> httpx.Response:
        """The answer to a question, the likeliest one."""
        return self.post("/v1/chat/completions", asking(question, **body))


def asking(question: str, **body: Any) -> dict[str, Any]:
    """The body of a request with one question."""
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **body}


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Waits until a condition holds; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"this did not happen in {seconds} s: {what}"
        time.sleep(0.01)


class Gate:
    """Lets an engine do a given number of dispatches, and no more."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def allow(self, dispatches: int) -> None:
        """Allows more."""
        self._permits.release(dispatches)

    def open(self) -> None:
        """As many as there are."""
        self.allow(1_000_000)

    def wait(self) -> None:
        """Until one is allowed."""
        self._permits.acquire()


def gated(model: ServedModel) -> tuple[ServedModel, Gate]:
    """The model with an engine that waits at a gate before every dispatch (of 8 tokens)."""
    gate = Gate()
    return changed(model, gate.wait), gate


def slowed(model: ServedModel, seconds: float) -> ServedModel:
    """The model, with an engine that pauses so long before every dispatch (of 8 tokens)."""
    return changed(model, lambda: time.sleep(seconds))


def changed(model: ServedModel, before: Callable[[], object]) -> ServedModel:
    """The model, with an engine that does something before every dispatch."""

    def open_engine() -> Service:
        engine: Any = model.open_engine()
        step = engine.step

        def changed_step() -> bool:
            before()
            return bool(step())

        engine.step = changed_step
        return engine

    return dataclasses.replace(model, open_engine=open_engine)


@contextmanager
def serve(
    models: Sequence[ServedModel], *, key: str | None = None, wait: bool = True, **settings: object
) -> Iterator[LiveServer]:
    """Serves models while open; `settings` are those of ServeConfig.

    `wait`: until requests are taken; else only until there are answers.
    """
    config = ServeConfig(**{"port": 0, "grace_seconds": 0.5, "warm_up": False, **settings})
    app = create_app(models, config, key=key)
    server, sock = Server(app, config), listen(config)
    port = sock.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, thread, (200,) if wait else (200, 503))
        yield LiveServer(url, models, app.state.scheduler)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"


def _wait_until_ready(url: str, thread: threading.Thread, statuses: Sequence[int]) -> None:
    deadline = time.monotonic() + 120
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert thread.is_alive(), "the server ended at its start"
            try:
                if client.get(f"{url}/ready", timeout=5).status_code in statuses:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise AssertionError("the server did not become ready")
