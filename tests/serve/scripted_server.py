"""A small server that hands out the page and answers by a script, as no real model would.

A script gets the request and yields what goes out: a dict is a chunk, a number is a pause in
seconds, a string is sent as it is. Raising Refusal before the first yield refuses the request.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jaxchat

PAGE = Path(jaxchat.__file__).parent / "serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
CONTEXT = 512

Script = Callable[[dict[str, Any]], Iterator[dict[str, Any] | float | str]]


class Refusal(Exception):
    """A request that is refused."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after


def chunk(
    content: str | None = None,
    part: tuple[str, str] | None = None,
    finish: str | None = None,
    tokens: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """One chunk of a streamed completion."""
    delta: dict[str, Any] = {} if content is None else {"content": content}
    if part or content is not None:
        kind, text = part or ("text", content)
        delta["part"] = {"type": kind, "text": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    if tokens is not None:
        choice["logprobs"] = {"content": tokens, "refusal": None}
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def end(tokens: int = 12, prompt: int = 20, finish: str = "stop") -> Iterator[dict[str, Any] | str]:
    """How a stream ends well."""
    yield chunk(finish=finish)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
        "jaxchat": {"tokens_per_second": 123.4, "context": CONTEXT},
    }
    yield {"choices": [], "usage": usage}
    yield "data: [DONE]\n\n"


def saying(text: str, pause: float = 0.0) -> Script:
    """A script that says a text in pieces of a few letters."""

    def script(_: dict[str, Any]) -> Iterator[dict[str, Any] | float | str]:
        for start in range(0, len(text), 7):
            yield chunk(text[start : start + 7])
            if pause:
                yield pause
        yield from end()

    return script


def model(name: str, **facts: Any) -> dict[str, Any]:
    """An entry of the list of models."""
    run, stage = name.split("/")
    usual = {
        "run": run,
        "stage": stage,
        "parameters": 1_048_576,
        "context": CONTEXT,
        "default": False,
    }
    return {"id": name, "object": "model", "jaxchat": usual | facts}


class ScriptedServer(ThreadingHTTPServer):
    """What a test sets (the script, the key, the models), and the requests that came."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.script: Script = saying("Hello.")
        self.key = ""
        self.compiled: float | None = None  # the share, while it compiles
        self.models = [model("cpu/rl", default=True), model("cpu/sft")]
        self.closing = threading.Event()  # ends what streams
        self.requests: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ScriptedServer

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the page left
            super().handle()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/health":
            self.answer(200, {"status": "ok"})
        elif path == "/ready":
            share = self.server.compiled
            left = {"status": "compiling", "compiled": share}
            self.answer(*((200, {"status": "ready"}) if share is None else (503, left)))
        elif path == "/v1/models":
            self.guarded(lambda: self.answer(200, {"object": "list", "data": self.server.models}))
        else:
            self.give_file(PAGE / (path.lstrip("/") or "index.html"))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/count":
            words = sum(len(str(message["content"]).split()) for message in request["messages"])
            self.guarded(lambda: self.answer(200, {"prompt_tokens": words, "context": CONTEXT}))
        else:
            self.server.requests.append(request)
            self.guarded(lambda: self.stream(request))

    def guarded(self, work: Callable[[], None]) -> None:
        """Does the work, if there is no key or it is right, and reports a refusal."""
        try:
            if self.server.key and self.headers["authorization"] != f"Bearer {self.server.key}":
                raise Refusal(401, "invalid_api_key", "The key is wrong or missing.")
            work()
        except Refusal as refusal:
            body = {"error": {"message": str(refusal), "code": refusal.code}}
            self.answer(refusal.status, body, refusal.retry_after)

    def stream(self, request: dict[str, Any]) -> None:
        script = self.server.script(request)
        first = next(script)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for item in itertools.chain([first], script):
            self.send(item)

    def send(self, item: dict[str, Any] | float | str) -> None:
        if isinstance(item, int | float):
            if self.server.closing.wait(item):
                raise ConnectionAbortedError
            return
        text = item if isinstance(item, str) else f"data: {json.dumps(item)}\n\n"
        self.wfile.write(text.encode())
        self.wfile.flush()

    def give_file(self, path: Path) -> None:
        if not path.is_file():
            self.answer(404, {"error": {"message": "not here"}})
            return
        self.send_response(200)
        self.send_header("content-type", f"{TYPES.get(path.suffix, 'text/plain')}; charset=utf-8")
        self.send_header("content-security-policy", POLICY)
        self.end_headers()
        self.wfile.write(path.read_bytes())

    def answer(self, status: int, body: dict[str, Any], retry_after: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if retry_after is not None:
            self.send_header("retry-after", str(retry_after))
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@contextlib.contextmanager
def scripted_server(port: int = 0) -> Iterator[ScriptedServer]:
    """A server that runs until the context is left."""
    server = ScriptedServer(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
