"""A web server on loopback that looks like the hub, and fails like one.

    /api/datasets/REPO/revision/REVISION      its commit
    /api/datasets/REPO/tree/COMMIT            its files, in pages
    /datasets/REPO/resolve/COMMIT/PATH        redirects to the store, another origin
    /api/models/..., /REPO/resolve/...        the same for models
    /plain/REPO/PATH                          the same files from a plain server, with index pages

`faults` says what goes wrong with the next requests for a file's bytes, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".parquet", ".safetensors", ".pt")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Fault:
    """What goes wrong once.

    Attributes:
        status, headers: an answer without the file.
        cut: bytes that come before the connection is closed.
        stall: whether it stays open instead, without another byte.
        no_range: Range is not understood: all of the file comes.
        wrong: other bytes come, as many.
        longer: bytes too many.
        pause: seconds before each 16 kB.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    stall: bool = False
    no_range: bool = False
    wrong: bool = False
    longer: int = 0
    pause: float = 0.0


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    host: str  # "hub" or "store"
    method: str
    path: str
    headers: dict[str, str]

    @property
    def start(self) -> int:
        """The first byte that was asked for."""
        match = re.match(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(match[1]) if match else 0


@dataclass
class Repo:
    """What a repository holds. Files whose names end in LARGE are large ones."""

    commit: str
    files: dict[str, bytes]


class HubServer:
    """Serves `repos` while open. Use as a context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, Iterator[Fault]] = {}
        self.asked: list[Asked] = []
        self.sent: dict[str, int] = {}  # bytes of each file that went out
        self.token: str | None = None  # without which the hub answers 401
        self.page = 1_000  # entries of a list in one page
        self.index = True  # whether the plain server has index pages
        self.tags = True  # whether it has ETags
        self.ranges = True
        self.heads = True  # whether it knows HEAD
        self.portal = False  # whether a page that wants you to log in stands before everything
        self._leave = threading.Event()
        self._hub, self._store = _Server(self, "hub"), _Server(self, "store")

    def add(self, repo: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
        """Puts files into a repository, which then has no others."""
        self.repos[repo] = Repo(commit, files)

    def add_folder(self, repo: str, folder: Path, commit: str = COMMIT) -> None:
        """Puts a folder's files into a repository."""
        below = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in below}
        self.add(repo, names, commit)

    def fail(self, path: str, *faults: Fault) -> None:
        """What goes wrong with the next requests for a file's bytes."""
        self.faults[path] = iter(faults)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def store_url(self) -> str:
        return f"http://127.0.0.1:{self._store.server_port}"

    def of(self, path: str) -> list[Asked]:
        """The requests to the store for a file's bytes."""
        return [
            asked for asked in self.asked if asked.path.endswith(path) and asked.host == "store"
        ]

    def __enter__(self) -> Self:
        for server in (self._hub, self._store):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._leave.set()
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()

    def wait(self, seconds: float) -> bool:
        """Sleeps, but no longer than the server is open."""
        return self._leave.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, owner: HubServer, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner, self.name = owner, name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        if not self.server.owner.heads:
            return self._say(501, "")
        self.do_GET()

    def do_GET(self) -> None:
        owner = self.server.owner
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        owner.asked.append(Asked(self.server.name, self.command, url.path, headers))
        if owner.portal:
            return self._say(200, "<html>log in</html>", {"Content-Type": "text/html"})
        if self.server.name == "store":
            return self._send_file(*unquote(url.path)[1:].split("//"))
        if owner.token and headers.get("authorization") != f"Bearer {owner.token}":
            return self._say(401, "{}")
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and match[1] in owner.repos:
                return answer(self, *map(unquote, match.groups()))
        self._say(404, "{}")

    def revision(self, repo: str, revision: str) -> None:
        del revision
        self._say(200, json.dumps({"sha": self.server.owner.repos[repo].commit}))

    def tree(self, repo: str, commit: str) -> None:
        owner = self.server.owner
        if commit != owner.repos[repo].commit:
            return self._say(404, "{}")
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        entries = [_entry(path, data) for path, data in owner.repos[repo].files.items()]
        entries.insert(0, {"type": "directory", "path": "folder", "size": 0, "oid": "0" * 40})
        headers = {}
        if start + owner.page < len(entries):  # with the address of the hub that a mirror mirrors
            link = f"https://hub.invalid/api/tree?recursive=true&cursor={start + owner.page}"
            headers["Link"] = f'<{link}>; rel="next"'
        self._say(200, json.dumps(entries[start : start + owner.page]), headers)

    def resolve(self, repo: str, commit: str, path: str) -> None:
        owner = self.server.owner
        if commit != owner.repos[repo].commit or path not in owner.repos[repo].files:
            return self._say(404, "{}")
        self._say(302, "", {"Location": f"{owner.store_url}/{quote(repo)}//{quote(path)}"})

    def plain(self, repo: str, path: str) -> None:
        owner = self.server.owner
        if path in owner.repos[repo].files:
            return self._send_file(repo, path)
        names = [n[len(path) :] for n in owner.repos[repo].files if n.startswith(path)]
        if not owner.index or (path and not path.endswith("/")):
            return self._say(404, "none")
        below = sorted({f"{n.split('/')[0]}/" if "/" in n else n for n in names})
        links = "".join(f'<a href="{quote(name)}">{name}</a>' for name in below)
        self._say(200, f'<html><a href="../">up</a>{links}</html>', {"Content-Type": "text/html"})

    def _send_file(self, repo: str, path: str) -> None:
        owner = self.server.owner
        data = owner.repos[repo].files[path]
        faults = owner.faults.get(path, iter(())) if self.command == "GET" else iter(())
        fault = next(faults, Fault())
        if fault.status != 200:
            return self._say(fault.status, "", fault.headers)
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        if fault.wrong:
            data = bytes(255 - byte for byte in data)
        data += b"x" * fault.longer
        start = Asked("", "", "", {"range": self.headers.get("Range", "")}).start
        if fault.no_range or not owner.ranges or self.headers.get("If-Range", tag) != tag:
            start = 0
        if start and start >= len(data):
            return self._say(416, "")
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if owner.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        if self.command == "GET":
            self._send_bytes(path, data[start:][: fault.cut], fault)

    def _send_bytes(self, path: str, data: bytes, fault: Fault) -> None:
        owner = self.server.owner
        for place in range(0, len(data), 1 << 14):
            if fault.pause and owner.wait(fault.pause):
                return
            piece = data[place : place + (1 << 14)]
            self.wfile.write(piece)
            owner.sent[path] = owner.sent.get(path, 0) + len(piece)
        if fault.stall:
            owner.wait(300)

    def _say(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (rf"/api/(?:datasets|models)/{_REPO}/revision/([^/]+)", _Handler.revision),
    (rf"/api/(?:datasets|models)/{_REPO}/tree/([^/]+)", _Handler.tree),
    (rf"(?:/datasets)?/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (rf"/plain/{_REPO}/(.*)", _Handler.plain),
)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file in the hub's tree: a large one is kept elsewhere, and its `oid` is a pointer's."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LARGE):
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        entry |= {"oid": "1" * 40, "lfs": large}
    return entry


def until(condition: Any, seconds: float = 60.0) -> None:
    """Waits until the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
