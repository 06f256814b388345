"""HTTP requests: proxies, redirects, tokens, and which failures are worth another try.

A failure is either a `TransientError`, which may not happen again, or a `WebError`, a sentence for
the user. `Retry` waits between the former and turns the last of them into the latter.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import random
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import jaxchat
from jaxchat.errors import ArtifactError, ConfigError

CHUNK = 1 << 20  # bytes read at most at a time
_LATER = frozenset({408, 425, 429, *range(500, 600)} - {501})
T = TypeVar("T")


class WebError(ArtifactError):
    """What is wanted cannot be had from a server; the message says why and what to do.

    `why` is the message without `advice`, which is for files of datasets: callers that fetch
    something else have other advice.
    """

    def __init__(self, why: str, advice: str = "") -> None:
        super().__init__(f"{why} {advice}".rstrip())
        self.why = why


class Unsupported(WebError):
    """The server does not know the method of the request."""


class TransientError(Exception):
    """A failure that may pass. `wait`: seconds that the server asks to wait, if it does."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class OutOfRange(TransientError):
    """The server has no bytes at the place where they were asked for (416)."""


class Stopped(Exception):
    """Work was asked to stop; never reported to the user."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a server is given."""

    tries: int = 7  # failures in a row, without a new byte, before giving up
    first_tries: int = 3  # the same, while no server has answered: there may be no network
    wait: float = 1.0  # seconds before the second try; doubled for each one after it
    longest_wait: float = 60.0  # seconds between two tries at most
    stall: float = 30.0  # seconds without a byte, after which a response is given up
    asked: float = 900.0  # seconds that a server may ask to wait (Retry-After); longer is an error


class Response:
    """An open response of a server."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Message = response.headers

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where the server does not say."""
        text = self.headers.get("Content-Length", "")
        return int(text) if text.isdecimal() else None

    @property
    def start(self) -> int:
        """The place in the file of the body's first byte."""
        match = re.match(r"bytes (\d+)-", self.headers.get("Content-Range", ""))
        return int(match[1]) if self.status == 206 and match else 0

    def read(self) -> bytes:
        """Some bytes as soon as they come; b"" at the end. TransientError also for a stall."""
        try:
            return bytes(self._response.read1(CHUNK))
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(_reason(error)) from error

    def text(self) -> str:
        """The whole body. Raises TransientError when it breaks off."""
        body = b"".join(iter(self.read, b""))
        if self.length is not None and len(body) != self.length:
            raise TransientError(f"the answer ended after {len(body):,} of {self.length:,} bytes")
        return body.decode("utf-8", "replace")


class Web:
    """Opens URLs. Holds no connection; any number of threads may use one.

    `token` goes to `token_for`, an address, and to no other host, whatever redirects say.
    `proxies`: scheme -> address of the proxy.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        token_for: str = "",
        proxies: Mapping[str, str] | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.policy = policy or RetryPolicy()
        self.reached = False  # whether any server has answered
        self._token, self._token_for = token, token_for
        proxy = urllib.request.ProxyHandler(dict(proxies or {}))
        self._opener = urllib.request.build_opener(proxy, _Redirects())

    @contextlib.contextmanager
    def open(
        self, url: str, what: str, headers: Mapping[str, str] | None = None, method: str = "GET"
    ) -> Iterator[Response]:
        """One try for `what`, as messages name it. Raises TransientError or WebError."""
        request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
        request.add_header("User-Agent", f"jaxchat/{jaxchat.__version__}")
        request.add_header("Accept-Encoding", "identity")
        if self._token and _origin(url) == _origin(self._token_for):
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            response = self._opener.open(request, timeout=self.policy.stall)
        except urllib.error.HTTPError as error:
            self.reached = True
            with error:
                raise self._refusal(error, url, what) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise WebError(
                    f"the certificate of {_host(url)} is not trusted ({reason.verify_message}); "
                    "set SSL_CERT_FILE to the certificates of your network."
                ) from error
            raise TransientError(_reason(reason)) from error
        self.reached = True
        with response:
            yield Response(response)

    def _refusal(self, error: urllib.error.HTTPError, url: str, what: str) -> Exception:
        """The error for a status that is not success."""
        status, host = error.code, _host(error.url or url)
        answer = f"{host} answers {status} {error.reason}"
        if status == 416:
            return OutOfRange(answer)
        elsewhere = status == 403 and _origin(error.url or url) != _origin(url)
        if status in _LATER or elsewhere:  # a store behind the hub: its signed address ran out
            return TransientError(answer, _asked_wait(error.headers))
        if status in (401, 403):
            mend = "check that HF_TOKEN has access" if self._token else "set HF_TOKEN"
            return WebError(
                f"{what} cannot be had: {answer}. It is private, or not called so, or its terms "
                f"must be accepted on its page first; then {mend}."
            )
        if status in (404, 410):
            return WebError(
                f"{what} is not there: {answer} for {url}.",
                "Check the name and the address; --refresh asks for the list of files again.",
            )
        if status == 407:
            return WebError(f"the proxy wants a password ({answer}); put it into https_proxy.")
        kind = Unsupported if status in (405, 501) else WebError
        return kind(f"{what} cannot be had: {answer} for {url}.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects; keeps the token from other hosts, and HEAD a HEAD."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is None:
            return None
        new.method = req.get_method()  # urllib of Python 3.11 makes it GET
        if _origin(newurl) != _origin(req.full_url):
            new.remove_header("Authorization")
        if new.type not in (req.type, "https"):
            raise urllib.error.HTTPError(
                newurl, code, f"a redirect away from {req.type}", headers, fp
            )
        return new


class Retry:
    """Waits after failures, longer each time; gives up after too many in a row."""

    def __init__(self, web: Web, what: str, url: str, stop: threading.Event | None = None) -> None:
        self.web, self.what, self.host = web, what, _host(url)
        self.stop = stop or threading.Event()
        self.failures = 0

    def failed(self, error: TransientError, progressed: bool = False) -> None:
        """Waits before the next try. Raises WebError when there is to be none, or Stopped."""
        policy = self.web.policy
        self.failures = 1 if progressed else self.failures + 1
        if self.failures >= (policy.tries if self.web.reached else policy.first_tries):
            if self.web.reached:
                raise WebError(
                    f"{self.what} cannot be had: {error}, {self.failures} times in a row. What has "
                    "come is kept: give the same command again later."
                ) from error
            raise WebError(
                f"{self.what} is wanted, but {self.host} cannot be reached ({error}).",
                "Without a network: --offline uses what was downloaded before, --data-dir your own "
                "files.",
            ) from error
        wait = error.wait
        if wait is None:
            longest = min(policy.wait * 2 ** (self.failures - 1), policy.longest_wait)
            wait = longest * random.uniform(0.5, 1.0)
        elif wait > policy.asked:
            raise WebError(
                f"{self.what} cannot be had now: {error}, and asks to wait {wait:,.0f} seconds; "
                "give the same command again then."
            ) from error
        else:
            wait += policy.wait * random.random()  # not all workers at once
        if self.stop.wait(wait):
            raise Stopped


def fetch(web: Web, url: str, what: str, result: Callable[[Response], T], method: str = "GET") -> T:
    """The `result` of a small response, after as many tries as it takes. Raises WebError."""
    retry = Retry(web, what, url)
    while True:
        try:
            with web.open(url, what, method=method) as response:
                return result(response)
        except TransientError as error:
            retry.failed(error)


def fetch_text(web: Web, url: str, what: str) -> tuple[str, Message]:
    """The body of a small response, as text, and its headers. Raises WebError."""
    return fetch(web, url, what, lambda response: (response.text(), response.headers))


def check_address(name: str, url: str) -> str:
    """An address without the / at its end. Raises ConfigError when it is not one of HTTP."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError(f"{name} has a password in it, which is not used; set HF_TOKEN.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{name} is {url!r}; it must be an address such as https://host/path.")
    return url.rstrip("/")


def _asked_wait(headers: Message) -> float | None:
    """Seconds from Retry-After (a number or a date), else from the hub's RateLimit: `...;t=55`."""
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    try:
        return max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        pass
    match = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(match[1]) if match else None


def _reason(error: Any) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, TimeoutError):
        return "no byte came for too long"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer broke off"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _host(url: str) -> str:
    """Host and port, for a message."""
    return urlsplit(url).netloc
