"""Other ways to write an address: without /v1, with a slash at its end, asked for by HEAD."""

from __future__ import annotations

from starlette.types import Scope

VERSION = "/v1"
# What clients also ask for without /v1: a base URL is easily given without it.
ROOTED = (
    "/chat/completions", "/completions", "/responses", "/models", "/count",
    "/tokenize", "/detokenize", "/tokenizer_info",
)  # fmt: skip


def usual(scope: Scope) -> Scope:
    """The request as the routes know it. The server itself leaves out the body of a HEAD."""
    path: str = scope["path"]
    short = path.rstrip("/") or "/"
    if short in ROOTED or short.startswith("/models/"):
        short = VERSION + short
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": short if short.startswith(VERSION) else path, "method": method}
