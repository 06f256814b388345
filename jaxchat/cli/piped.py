"""What comes through a pipe: a question a line, or a conversation a line (layer 4).

A pipe is data. What a person types at a terminal means more: commands that begin with a slash, and
messages of several lines; see `converse`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from jaxchat.errors import ConfigError
from jaxchat.tokenizer.chat_format import ConversationError, Message, check_conversation

BYTE_ORDER_MARK = "\ufeff"
LONGEST = 1 << 24  # bytes of a line: no context holds as much
_CONVERSATION = re.compile(r'\{.*"messages"\s*:', re.DOTALL)  # or one that is broken


class Line(NamedTuple):
    """A line of a pipe: what is asked, or why it cannot be."""

    number: int  # from 1, empty lines counted
    text: str  # the question; of a conversation, its last message
    before: tuple[Message, ...] = ()  # what a conversation says before it, a system message first
    is_conversation: bool = False
    error: str = ""


def read_lines(stream: IO[Any]) -> Iterator[Line]:
    """The lines as they come, without empty ones; a byte order mark and a CR at the end go."""
    source = getattr(stream, "buffer", stream)  # bytes, so that one bad line is only one
    number = 0
    while line := source.readline(LONGEST):
        number += 1
        if len(line) == LONGEST and line[-1:] not in ("\n", b"\n"):
            while (rest := source.readline(LONGEST)) and rest[-1:] not in ("\n", b"\n"):
                pass
            told = f"it is longer than {LONGEST // 2**20} MB, which no context holds"
            yield Line(number, "", error=told)
        elif (read := _read(number, line)) is not None:
            yield read


def read_whole(stream: IO[Any] | None) -> str:
    """All of a pipe as one question. Raises ConfigError where it is not UTF-8."""
    whole = b"" if stream is None else getattr(stream, "buffer", stream).read()
    try:
        return _text(whole)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"what stdin says is not UTF-8 ({error.reason} at byte {error.start}); convert it, as "
            "with: iconv -f LATIN1 -t UTF-8"
        ) from error


def _text(line: bytes | str) -> str:
    text = line.decode() if isinstance(line, bytes) else line
    return text.removeprefix(BYTE_ORDER_MARK)


def _read(number: int, line: bytes | str) -> Line | None:
    try:
        text = _text(line).strip()
    except UnicodeDecodeError as error:
        shown = error.object.decode(errors="replace").strip()
        return Line(number, shown, error=f"it is not UTF-8 (at its byte {error.start + 1})")
    if not text:
        return None
    if not text.startswith("{"):
        return Line(number, text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _CONVERSATION.match(text) is None:  # a question that begins with a brace
            return Line(number, text)
        told = str(error) if isinstance(error, ValueError) else "nested too deeply"
        return Line(number, text, error=f"it is a conversation that is no JSON: {told}")
    if "messages" not in value:
        return Line(number, text)
    return _conversation(number, text, value)


def _conversation(number: int, text: str, value: object) -> Line:
    try:
        messages = check_conversation(value)["messages"]
    except ConversationError as error:
        return Line(number, text, error=str(error))
    *before, last = messages
    if last["role"] != "user" or not isinstance(last["content"], str):
        told = f"its last message is of the {last['role']}; it must be the user's, to be answered"
        return Line(number, text, error=told)
    return Line(number, last["content"], tuple(before), is_conversation=True)
