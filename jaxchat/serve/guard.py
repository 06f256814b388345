"""ASGI middleware around the routes: request ids, access checks, limits, headers and the log.

It checks the Host header, the key, and the size and time of the body, and adds headers to every
response. Of a request only method, path, status, time and id are logged.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Collection

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxchat.config.operations import LOOPBACK, ServeConfig
from jaxchat.serve.addresses import usual
from jaxchat.serve.schema import ApiError

log = logging.getLogger("jaxchat.serve")
access = logging.getLogger("jaxchat.access")

GUARDED = ("/v1/", "/metrics")  # paths that need the key, if there is one
NAMED = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)  # ids that a client may give its request
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEAD_BYTES = 32_768  # of all headers of a request
LEFT_UNREAD = {"connection": "close"}  # for a request whose body is not read to its end
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def allowed_hosts(config: ServeConfig) -> frozenset[str] | None:
    """The names that the Host header may have; None: any.

    Without this, a page of any site could reach a server on this machine through a name of its own
    that resolves to it (DNS rebinding). A server that others can reach is protected by its key.
    """
    if "*" in config.hosts or (not config.hosts and not config.is_local):
        return None
    return frozenset(name.lower() for name in (*LOOPBACK, config.host, *config.hosts))


class Guard:
    """The middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServeConfig,
        key: str | None,
        requests: Counter,
        paths: Collection[str],
    ) -> None:
        """`requests` counts by path and status; a path not among `paths` is "other"."""
        self._app, self._config, self._requests = app, config, requests
        self._key = None if key is None else key.encode()
        self._hosts = allowed_hosts(config)
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent, scope = scope, usual(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if NAMED.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        began, status = time.monotonic(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response = MutableHeaders(scope=message)
                response["x-request-id"] = name
                for header, value in HEADERS.items():
                    response.setdefault(header, value)
            await send(message)

        async def answer(error: ApiError) -> None:
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_named)

        try:
            self._check(scope, headers)
            await self._app(scope, self._bounded(receive), send_named)
        except ApiError as error:
            await answer(error)
        except Exception:
            log.exception("the request %s failed", name)
            if status:  # the response has begun: it can only be broken off
                raise
            await answer(ApiError(500, "the server failed; this is a bug in jaxchat."))
        finally:
            self._note({**scope, "method": sent["method"]}, status, time.monotonic() - began, name)

    def _note(self, scope: Scope, status: int, seconds: float, name: str) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._requests.labels(path, str(status)).inc()
        raw = scope.get("raw_path", b"").decode("ascii", errors="replace")  # as it was sent
        access.info("%s %s %d %.0f ms %s", scope["method"], raw, status, 1e3 * seconds, name)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                403,
                "this Host header is not accepted here; if it is right, start the server with "
                "--allow-host and its name.",
                code="host_not_allowed",
            )
        path: str = scope["path"]
        if self._key is not None and path.startswith(GUARDED) and scope["method"] != "OPTIONS":
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(), self._key)
            if kind.lower() != "bearer" or not same:
                wrong = "the key is not that of this server."
                message = wrong if given else "a key is needed: send 'Authorization: Bearer KEY'."
                bearer = {"www-authenticate": "Bearer"}
                raise ApiError(401, message, code="invalid_api_key", headers=bearer)
        if sum(len(name) + len(value) for name, value in headers.raw) > HEAD_BYTES:
            message = f"the headers have more than {HEAD_BYTES} bytes."
            raise ApiError(431, message, code="headers_too_large")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._config.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        message = f"the body has more than {self._config.body_bytes} bytes."
        return ApiError(413, message, code="body_too_large", headers=LEFT_UNREAD)

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, with a limit on the size of the body and on the time it takes."""
        deadline = time.monotonic() + self._config.body_seconds
        read, whole = 0, False

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError as error:
                text = "the body did not arrive in time."
                raise ApiError(408, text, code="body_too_slow", headers=LEFT_UNREAD) from error
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > self._config.body_bytes:
                    raise self._too_large()
            return message

        return bounded


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header
