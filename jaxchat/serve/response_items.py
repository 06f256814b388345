"""What a response puts out: a message, or a call of a client's function, whole and as events."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from jaxchat.serve.tool_calls import CallStream

ItemEvent = tuple[str, dict[str, Any]]  # its type after "response.", and its fields


class Item(ABC):
    """The one item of a response's output, which grows with the text of the answer."""

    @abstractmethod
    def open(self) -> Iterator[ItemEvent]:
        """What is sent before there is text."""

    @abstractmethod
    def feed(self, text: str) -> Iterator[ItemEvent]:
        """What more text adds."""

    @abstractmethod
    def close(self, status: str) -> Iterator[ItemEvent]:
        """What is sent at the end; `status` is completed or incomplete."""

    @abstractmethod
    def output(self, status: str) -> list[dict[str, Any]]:
        """The items of the ended response; none where a call was cut off before its name."""


class MessageItem(Item):
    """The text of the assistant."""

    def __init__(self, name: str) -> None:
        self._id, self._text = f"msg_{name}", ""
        self._place = {"item_id": self._id, "output_index": 0, "content_index": 0}

    def open(self) -> Iterator[ItemEvent]:
        yield "output_item.added", {"output_index": 0, "item": self._item("in_progress", [])}
        yield "content_part.added", {**self._place, "part": _part("")}

    def feed(self, text: str) -> Iterator[ItemEvent]:
        self._text += text
        yield "output_text.delta", {**self._place, "delta": text, "logprobs": []}

    def close(self, status: str) -> Iterator[ItemEvent]:
        yield "output_text.done", {**self._place, "text": self._text, "logprobs": []}
        yield "content_part.done", {**self._place, "part": _part(self._text)}
        yield "output_item.done", {"output_index": 0, "item": self.output(status)[0]}

    def output(self, status: str) -> list[dict[str, Any]]:
        return [self._item(status, [_part(self._text)])]

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }


class CallItem(Item):
    """A call of one of a client's functions."""

    def __init__(self, name: str, functions: Sequence[str]) -> None:
        self._id, self._stream = f"fc_{name}", CallStream(functions)
        self._place = {"item_id": self._id, "output_index": 0}
        self._call = self._name = self._arguments = ""

    def open(self) -> Iterator[ItemEvent]:
        return iter(())

    def feed(self, text: str) -> Iterator[ItemEvent]:
        return self._events(self._stream.feed(text))

    def close(self, status: str) -> Iterator[ItemEvent]:
        yield from self._events(self._stream.close(complete=status == "completed"))
        if self._call:
            arguments = {"name": self._name, "arguments": self._arguments}
            yield "function_call_arguments.done", {**self._place, **arguments}
            yield "output_item.done", {"output_index": 0, "item": self._item(status)}

    def output(self, status: str) -> list[dict[str, Any]]:
        return [self._item(status)] if self._call else []

    def _events(self, deltas: Sequence[dict[str, Any]]) -> Iterator[ItemEvent]:
        for delta in deltas:
            function = delta["function"]
            if "id" in delta:
                self._call, self._name = delta["id"], function["name"]
                added = {"output_index": 0, "item": self._item("in_progress")}
                yield "output_item.added", added
            if function["arguments"]:
                self._arguments += function["arguments"]
                sent = {**self._place, "delta": function["arguments"]}
                yield "function_call_arguments.delta", sent

    def _item(self, status: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "function_call",
            "call_id": self._call,
            "name": self._name,
            "arguments": self._arguments,
            "status": status,
        }


def output_item(functions: Sequence[str]) -> Item:
    """A new item: a call where there are functions one of which must be called."""
    name = secrets.token_hex(12)
    return CallItem(name, functions) if functions else MessageItem(name)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
