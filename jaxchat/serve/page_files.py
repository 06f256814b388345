"""The page: the files of the folder `page`, read once, each under its own path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
ABSENT = (
    "The page has not been built here; the interface for programs is at /v1. "
    "To build it: npm ci && npm run build, in the folder ui of the repository.\n"
)


@dataclass(frozen=True)
class PageFile:
    """A file with its headers."""

    data: bytes
    headers: dict[str, str]


def read_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Path -> file, with the page itself at "/". What is no file of a known type is left out.

    Names under assets/ carry a hash of their content: they may be kept for ever.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        lasting = name.startswith("assets/")
        data = path.read_bytes()
        headers = {
            "content-type": kind,
            "cache-control": "public, max-age=31536000, immutable" if lasting else "no-cache",
            "etag": f'"{hashlib.sha256(data).hexdigest()[:32]}"',
        }
        found["/" if name == "index.html" else f"/{name}"] = PageFile(data, headers)
    return found
