"""Conversations as token ids, with a mask of what the assistant learns to say.

A conversation is `<|bos|>` and then, for each message, its text between `<|user_start|>` and
`<|user_end|>` or between `<|assistant_start|>` and `<|assistant_end|>`. The assistant may call
Python: the code stands between `<|python_start|>` and `<|python_end|>`, and what it printed between
`<|output_start|>` and `<|output_end|>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, get_args

from jaxchat.tokenizer.bpe import Tokenizer

PartType = Literal["text", "python", "python_output"]


class Part(TypedDict):
    """A piece of an assistant message."""

    type: PartType
    text: str


class Message(TypedDict):
    """One turn; only the assistant's content may be a list of parts."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Conversation(TypedDict):
    """User and assistant in turns, after at most one system message."""

    messages: list[Message]


class ConversationError(ValueError):
    """A conversation that cannot be rendered; the message names the field."""


PART_TYPES = get_args(PartType)
DELIMITERS: Mapping[PartType, tuple[str, str]] = {
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}


def render(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of a conversation, and for each id 1 where the assistant learns it, else 0.

    Learned are the assistant's text, its Python calls with their delimiters, and
    `<|assistant_end|>`; the output of a call is the tool's and not learned. A system message is put
    before the first user message, with an empty line between them.

    Raises ConversationError when the conversation is malformed.
    """
    if not isinstance(conversation, Mapping) or "messages" not in conversation:
        raise ConversationError('a conversation must be a dict with the key "messages".')
    return _render_messages(conversation["messages"], tokenizer)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the assistant speaks: the messages, then `<|assistant_start|>`.

    Raises ConversationError when the messages are malformed or the last is not the user's.
    """
    ids, _ = _render_messages(messages, tokenizer)
    if messages[-1]["role"] != "user":
        raise ConversationError(
            f"messages[{len(messages) - 1}].role is {messages[-1]['role']!r}; the last message of "
            "a prompt must be the user's."
        )
    return [*ids, tokenizer.special("<|assistant_start|>")]


def parse_completion(ids: Sequence[int], tokenizer: Tokenizer) -> list[Part]:
    """The parts of what the assistant said after `<|assistant_start|>`; never an error.

    The completion ends at `<|assistant_end|>` or `<|bos|>`. A part that was cut off before its end
    is given as it stands; delimiters that match nothing are left out, and so is empty text.
    """
    starts = {tokenizer.special(start): kind for kind, (start, _) in DELIMITERS.items()}
    ends = {tokenizer.special(end) for _, end in DELIMITERS.values()}
    stops = {tokenizer.special("<|assistant_end|>"), tokenizer.bos}
    open_part: tuple[PartType, list[int]] = ("text", [])
    found = [open_part]
    for token in ids:
        if token in stops:
            break
        if token in starts or token in ends:
            open_part = (starts.get(token, "text"), [])
            found.append(open_part)
        elif tokenizer.is_ordinary(token):
            open_part[1].append(token)
    parts: list[Part] = [{"type": kind, "text": tokenizer.decode(body)} for kind, body in found]
    return [part for part in parts if part["text"] or part["type"] != "text"]


def _render_messages(
    messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    row = _Row(tokenizer)
    row.special("<|bos|>")
    for role, parts in _turns(messages):
        row.special(f"<|{role}_start|>")
        for part in parts:
            row.part(part, learned=role == "assistant" and part["type"] != "python_output")
        row.special(f"<|{role}_end|>", learned=role == "assistant")
    return row.ids, row.mask


class _Row:
    """Ids and mask under construction."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.mask: list[int] = []

    def add(self, ids: list[int], learned: bool) -> None:
        self.ids += ids
        self.mask += [int(learned)] * len(ids)

    def special(self, name: str, learned: bool = False) -> None:
        self.add([self.tokenizer.special(name)], learned)

    def part(self, part: Part, learned: bool) -> None:
        body = self.tokenizer.encode(part["text"])
        if part["type"] == "text":
            self.add(body, learned)
            return
        start, end = DELIMITERS[part["type"]]
        self.special(start, learned)
        self.add(body, learned)
        self.special(end, learned)


def _turns(messages: Sequence[Message]) -> list[tuple[str, list[Part]]]:
    """Checks messages; gives role and parts of each, the system's merged into the first user's."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ConversationError("messages must be a list of at least one message.")
    system = ""
    turns: list[tuple[str, list[Part]]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = _check_role(message, where, len(turns), first=index == 0)
        parts = _check_content(message.get("content"), role, where)
        if role == "system":
            system = parts[0]["text"] + "\n\n"
            continue
        if not turns:
            parts = [{"type": "text", "text": system + parts[0]["text"]}]
        turns.append((role, parts))
    if not turns:
        raise ConversationError("messages has a system message only; a user message must follow.")
    return turns


def _check_role(message: object, where: str, turn: int, *, first: bool) -> str:
    if not isinstance(message, Mapping):
        raise ConversationError(
            f"{where} is of type {type(message).__name__}; it must be a dict with role and content."
        )
    role = message.get("role")
    if role == "system" and first:
        return "system"
    expected = "user" if turn % 2 == 0 else "assistant"
    if role != expected:
        raise ConversationError(
            f"{where}.role is {role!r}; it must be {expected!r}: user and assistant take turns, "
            "after at most one system message."
        )
    return expected


def _check_content(content: object, role: str, where: str) -> list[Part]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if role != "assistant" or not isinstance(content, list | tuple):
        expected = "a str or a list of parts" if role == "assistant" else "a str"
        raise ConversationError(
            f"{where}.content is of type {type(content).__name__}; for the {role} it must be "
            f"{expected}."
        )
    for index, part in enumerate(content):
        _check_part(part, f"{where}.content[{index}]")
    return list(content)


def _check_part(part: object, where: str) -> None:
    if not isinstance(part, Mapping):
        raise ConversationError(
            f"{where} is of type {type(part).__name__}; it must be a dict with type and text."
        )
    kind = part.get("type")
    if kind not in PART_TYPES:
        raise ConversationError(f"{where}.type is {kind!r}; it must be one of {PART_TYPES}.")
    if not isinstance(part.get("text"), str):
        raise ConversationError(
            f"{where}.text is of type {type(part.get('text')).__name__}; it must be a str."
        )
