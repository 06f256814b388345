"""What engines of one device have in common: the weights, and the prompt that was read last.

One request's samples may go to several engines; its prompt is read once all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxchat.inference.request import Request
from jaxchat.model.kv_cache import Cache


class Shared:
    """Weights, and what was read for one request."""

    params: Any = None  # None: nobody has given any

    def __init__(self) -> None:
        self._prompt: tuple[Request, Cache] | None = None

    def set_params(self, params: Any) -> None:
        """Takes other weights; what was read with the old ones is of no use."""
        self.params = params
        self.forget()

    def prompt(self, request: Request, read: Callable[[], Cache]) -> Cache:
        """The cache after a request's prompt; `read` makes it where another was read last."""
        if self._prompt is None or self._prompt[0] is not request:
            self._prompt = request, read()
        return self._prompt[1]

    def forget(self) -> None:
        """The prompt that was read: the weights are others, or an error may have taken it."""
        self._prompt = None
