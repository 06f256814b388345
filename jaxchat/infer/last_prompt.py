"""The prompt that was read last: a request's samples share it, in all engines of a device."""

from __future__ import annotations

from collections.abc import Callable

from jaxchat.infer.request import Request
from jaxchat.model.cache import Cache


class LastPrompt:
    """Holds what was read for one request."""

    def __init__(self) -> None:
        self._held: tuple[Request, Cache] | None = None

    def get(self, request: Request, read: Callable[[], Cache]) -> Cache:
        """The cache after a request's prompt; `read` makes it where another was read last."""
        if self._held is None or self._held[0] is not request:
            self._held = request, read()
        return self._held[1]

    def forget(self) -> None:
        """The weights are others, or an error may have taken it."""
        self._held = None
