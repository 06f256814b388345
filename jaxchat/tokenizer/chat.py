"""Conversations as token ids, with a mask of what the assistant learns to say.

A conversation is `<|bos|>` and then, for each message, its text between `<|user_start|>` and
`<|user_end|>` or between `<|assistant_start|>` and `<|assistant_end|>`. The assistant may call
Python: the code stands between `<|python_start|>` and `<|python_end|>`, and what it printed between
`<|output_start|>` and `<|output_end|>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.special import SPECIAL_TOKENS

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


def render(
    conversation: Conversation, tokenizer: Tokenizer, max_tokens: int | None = None
) -> tuple[list[int], list[int]]:
    """The ids of a conversation, and for each id 1 where the assistant learns it, else 0.

    Learned are the assistant's text, its Python calls with their delimiters, and
    `<|assistant_end|>`; the output of a call is the tool's and not learned. A system message is put
    before the first user message, with an empty line between them. What is beyond `max_tokens` ids
    is cut off.

    Raises ConversationError when the conversation is malformed.
    """
    ids, mask = _render_messages(_messages(conversation), tokenizer)
    return ids[:max_tokens], mask[:max_tokens]


def render_batch(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    max_tokens: int | None = None,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """`render` of many conversations at once, several times as fast: (ids, mask, offsets).

    Conversation n has `ids[offsets[n] : offsets[n + 1]]`, and its mask there. The texts are encoded
    together, by `threads` threads (None: one per core); the types are those of `encode_batch`.

    Raises ConversationError, which says which conversation of the batch is malformed.
    """
    specials = {name: tokenizer.special(name) for name in SPECIAL_TOKENS}
    texts: list[str] = []
    tokens: list[int] = []  # of each segment: its special token, or -1 for a text
    learned: list[bool] = []
    ends = [0]  # segments before each conversation, and in all
    for number, conversation in enumerate(conversations):
        try:
            for text, special, counts in _segments(_messages(conversation)):
                if not special:
                    texts.append(text)
                tokens.append(specials[text] if special else -1)
                learned.append(counts)
        except ConversationError as error:
            raise ConversationError(f"conversation {number} of the batch: {error}") from error
        ends.append(len(tokens))
    body, starts = tokenizer.encode_batch(texts, threads=threads)

    segments = np.array(tokens, np.int64)
    is_text = segments < 0
    sizes = np.ones(len(segments), np.int64)
    sizes[is_text] = np.diff(starts)
    places = np.concatenate([[0], np.cumsum(sizes)])  # of each segment among the ids
    ids = np.empty(places[-1], body.dtype)
    ordinary = np.ones(len(ids), np.bool_)
    ordinary[places[:-1][~is_text]] = False
    ids[~ordinary] = segments[~is_text]
    ids[ordinary] = body
    mask = np.repeat(np.array(learned, np.uint8), sizes)
    offsets = places[ends]
    return (ids, mask, offsets) if max_tokens is None else _cut(ids, mask, offsets, max_tokens)


def check_conversation(value: object) -> Conversation:
    """The value, if it can be rendered. Raises ConversationError, which names the field."""
    messages = _messages(value)
    for role, parts in _turns(messages):
        bad = next((part for part in parts if not _is_unicode(part["text"])), None)
        if bad is not None:
            raise ConversationError(
                f"a text of the {role} holds a lone surrogate ({bad['text']!a:.40}); it must be "
                "valid Unicode."
            )
    return {"messages": messages}


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


def _messages(conversation: object) -> list[Message]:
    if not isinstance(conversation, Mapping) or "messages" not in conversation:
        raise ConversationError('a conversation must be a dict with the key "messages".')
    messages: list[Message] = conversation["messages"]
    return messages


def _is_unicode(text: str) -> bool:
    r"""Whether no surrogate stands alone, as JSON's \ud800 does."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _render_messages(
    messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    mask: list[int] = []
    for text, special, learned in _segments(messages):
        body = [tokenizer.special(text)] if special else tokenizer.encode(text)
        ids += body
        mask += [int(learned)] * len(body)
    return ids, mask


def _segments(messages: Sequence[Message]) -> Iterator[tuple[str, bool, bool]]:
    """What a conversation consists of, in order.

    Each is a text or the name of a special token, whether it is a name, and whether it is learned.
    """
    yield "<|bos|>", True, False
    for role, parts in _turns(messages):
        says = role == "assistant"
        yield f"<|{role}_start|>", True, False
        for part in parts:
            learned = says and part["type"] != "python_output"
            if part["type"] == "text":
                yield part["text"], False, learned
                continue
            start, end = DELIMITERS[part["type"]]
            yield start, True, learned
            yield part["text"], False, learned
            yield end, True, learned
        yield f"<|{role}_end|>", True, says


def _cut(
    ids: npt.NDArray[np.uint16 | np.uint32],
    mask: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    limit: int,
) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The first `limit` ids of each conversation."""
    sizes = np.diff(offsets)
    kept = np.minimum(sizes, limit)
    keep = np.arange(len(ids)) - np.repeat(offsets[:-1], sizes) < limit
    return ids[keep], mask[keep], np.concatenate([[0], np.cumsum(kept)])


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
