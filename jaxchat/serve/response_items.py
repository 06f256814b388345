"""The one item of a response's output: a message or a call, with the events by which it grows."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from jaxchat.serve.tool_calls import CallStream

Event = tuple[str, dict[str, Any]]  # what comes behind "response.", and its fields


class Item(ABC):
    """An item of the output while it grows."""

    prefix: str

    def __init__(self) -> None:
        self._id = f"{self.prefix}_{secrets.token_hex(12)}"

    @abstractmethod
    def open(self) -> Iterator[Event]:
        """The events before the first text."""

    @abstractmethod
    def feed(self, text: str) -> Iterator[Event]:
        """The events of more text."""

    @abstractmethod
    def close(self, status: str) -> Iterator[Event]:
        """The events behind the last text, for an answer that is completed or incomplete."""

    @abstractmethod
    def output(self, status: str) -> list[dict[str, Any]]:
        """The output of a response that has ended."""


class MessageItem(Item):
    """A message of one text."""

    prefix = "msg"

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._place = {"item_id": self._id, "output_index": 0, "content_index": 0}

    def open(self) -> Iterator[Event]:
        yield "output_item.added", {"output_index": 0, "item": self._message("in_progress", [])}
        yield "content_part.added", {**self._place, "part": _part("")}

    def feed(self, text: str) -> Iterator[Event]:
        self._text += text
        if text:
            yield "output_text.delta", {**self._place, "delta": text, "logprobs": []}

    def close(self, status: str) -> Iterator[Event]:
        yield "output_text.done", {**self._place, "text": self._text, "logprobs": []}
        yield "content_part.done", {**self._place, "part": _part(self._text)}
        yield "output_item.done", {"output_index": 0, "item": self.output(status)[0]}

    def output(self, status: str) -> list[dict[str, Any]]:
        return [self._message(status, [_part(self._text)])]

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }


class CallItem(Item):
    """A call of a client's function; there is none until the text names it."""

    prefix = "fc"

    def __init__(self, functions: Sequence[str]) -> None:
        """`functions` are the names of those that the answer may call."""
        super().__init__()
        self._stream = CallStream(functions)
        self._call: dict[str, Any] = {}  # its name and the id by which a client answers it
        self._arguments = ""
        self._place = {"item_id": self._id, "output_index": 0}

    def open(self) -> Iterator[Event]:
        yield from ()

    def feed(self, text: str) -> Iterator[Event]:
        return self._events(self._stream.feed(text))

    def close(self, status: str) -> Iterator[Event]:
        yield from self._events(self._stream.close(complete=status == "completed"))
        if self._call:
            done = {"name": self._call["name"], "arguments": self._arguments}
            yield "function_call_arguments.done", {**self._place, **done}
            yield "output_item.done", {"output_index": 0, "item": self._json(status)}

    def output(self, status: str) -> list[dict[str, Any]]:
        return [self._json(status)] if self._call else []

    def _events(self, deltas: Sequence[dict[str, Any]]) -> Iterator[Event]:
        for delta in deltas:
            function = delta["function"]
            if "name" in function:
                self._call = {"call_id": delta["id"], "name": function["name"]}
                yield "output_item.added", {"output_index": 0, "item": self._json("in_progress")}
            if function["arguments"]:
                self._arguments += function["arguments"]
                new = {**self._place, "delta": function["arguments"]}
                yield "function_call_arguments.delta", new

    def _json(self, status: str) -> dict[str, Any]:
        call = {**self._call, "arguments": self._arguments}
        return {"id": self._id, "type": "function_call", "status": status, **call}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
