"""Conversations as token ids, with a mask of what the assistant learns to say.

A conversation is `<|bos|>` and then, for each message, its text between `<|user_start|>` and
`<|user_end|>` or between `<|assistant_start|>` and `<|assistant_end|>`. The assistant may call
Python: the code stands between `<|python_start|>` and `<|python_end|>`, and what it printed between
`<|output_start|>` and `<|output_end|>`. A tokenizer without those four tokens renders no calls.

A message, and a conversation as a whole, may say how much of it counts in the loss: `weight` or
`train`, a number from 0 (not learned) to 1, or false or true. They multiply. What is not the
assistant's is never learned, whatever they say.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, NotRequired, TypedDict, get_args

import numpy as np
import numpy.typing as npt

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
    weight: NotRequired[float | None]
    train: NotRequired[float | None]


class Conversation(TypedDict):
    """User and assistant in turns, after at most one system message."""

    messages: list[Message]
    weight: NotRequired[float | None]
    train: NotRequired[float | None]


class ConversationError(ValueError):
    """A conversation that cannot be rendered; the message names the field."""


PART_TYPES = get_args(PartType)
WEIGHTS = ("weight", "train")  # fields of a message or conversation that weigh it in the loss
# What else a conversation, a message and a part have; other fields are not looked at.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "conversation": ("messages", *WEIGHTS),
    "message": ("role", "content", *WEIGHTS),
    "part": ("type", "text"),
}
_INSIDE = {"conversation": ("messages", "message"), "message": ("content", "part")}
_CALLS = "a call of Python is a part of the type python, another cannot be learned"
_MEDIA = "only text can be learned"
_LEARNED = "what is learned is said by weight or train"
_SYSTEM = "write it as the first message, of the role system"
# Fields of other programs' files without which a conversation, or what is learned of it, would be
# another one; and what to do instead. They are refused, unless they are null or empty.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("tool_calls", "function_call"), _CALLS),
    **dict.fromkeys(("images", "image", "audio", "audios", "video", "videos"), _MEDIA),
    **dict.fromkeys(("loss", "mask", "masked", "loss_mask", "trainable", "train_detail"), _LEARNED),
    **dict.fromkeys(("system", "system_prompt"), _SYSTEM),
    "refusal": "write it as the content",
}
Mask = npt.NDArray[np.uint8 | np.float32]  # of each id its weight in the loss; 0: not learned
DELIMITERS: Mapping[PartType, tuple[str, str]] = {
    "python": ("<|python_start|>", "<|python_end|>"),
    "python_output": ("<|output_start|>", "<|output_end|>"),
}


def render(conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """The ids of a conversation, and for each id its weight in the loss: 0 where it isn't learned.

    Learned are the assistant's text, its Python calls with their delimiters, and
    `<|assistant_end|>`; the output of a call is the tool's and not learned. Their weight is 1,
    or the product of what message and conversation say (WEIGHTS). A system message is put before
    the first user message, with an empty line between them; a blank one is as if it were not there.

    Raises ConversationError when the conversation is malformed.
    """
    ids: list[int] = []
    mask: list[float] = []
    for text, special, weight in _segments(conversation):
        body = [_special(text, tokenizer.specials)] if special else tokenizer.encode(text)
        ids += body
        mask += [weight] * len(body)
    return ids, mask


def render_batch(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.uint16 | np.uint32], Mask, npt.NDArray[np.int64]]:
    """`render` of many conversations at once, several times as fast: (ids, mask, offsets).

    Conversation n has `ids[offsets[n] : offsets[n + 1]]`, and its mask there. The texts are encoded
    together, by `threads` threads (None: one per core); the types are those of `encode_batch`, and
    the mask is uint8 where all weights are 0 or 1, else float32.

    Raises ConversationError, which says which conversation of the batch is malformed.
    """
    texts: list[str] = []
    tokens: list[int] = []  # of each segment: its special token, or -1 for a text
    weights: list[float] = []
    ends = [0]  # segments before each conversation, and in all
    for number, conversation in enumerate(conversations):
        try:
            for text, special, weight in _segments(conversation):
                if not special:
                    texts.append(text)
                tokens.append(_special(text, tokenizer.specials) if special else -1)
                weights.append(weight)
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
    whole = all(weight in (0, 1) for weight in weights)
    mask: Mask = np.repeat(np.array(weights, np.uint8 if whole else np.float32), sizes)
    return ids, mask, places[ends]


def check_conversation(value: object) -> Conversation:
    """The value, if it can be rendered. Raises ConversationError, which names the field."""
    whole = _whole(value)
    messages: list[Message] = whole["messages"]
    _refuse(whole, "")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        _refuse(message, f"messages[{index}].")
    _turns(messages)
    for index, message in enumerate(messages):
        content, where = message["content"], f"messages[{index}].content"
        if isinstance(content, str):
            _check_unicode(content, where)
            continue
        for number, part in enumerate(content):
            _check_unicode(part["text"], f"{where}[{number}].text")
    checked: Conversation = {"messages": messages}
    if (weight := _weight(whole, "")) != 1:
        checked["weight"] = weight
    return checked


def render_prompt(messages: list[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the assistant speaks: the messages, then `<|assistant_start|>`.

    Raises ConversationError when the messages are malformed or the last is not the user's.
    """
    ids, _ = render({"messages": messages}, tokenizer)
    if messages[-1]["role"] != "user":
        raise ConversationError(
            f"messages[{len(messages) - 1}].role is {messages[-1]['role']!r}; the last message of "
            "a prompt must be the user's."
        )
    return [*ids, tokenizer.special("<|assistant_start|>")]


def parse_completion(ids: Sequence[int], tokenizer: Tokenizer) -> list[Part]:
    """The parts of a completion, what the assistant said after `<|assistant_start|>`; no errors.

    A part that was cut off before its end is given as it stands; delimiters that match nothing are
    left out, and so is empty text.
    """
    parser = PartParser(tokenizer)
    parts: list[Part] = [{"type": "text", "text": ""}]
    for token in ids:
        added, *opened = parser.feed(token)
        parts[-1]["text"] += added["text"]
        parts += opened
    parts[-1]["text"] += parser.close()["text"]
    return [part for part in parts if part["text"] or part["type"] != "text"]


class PartParser:
    """Cuts the ids of a completion into its parts while they arrive.

    It ends at `<|assistant_end|>` or `<|bos|>`; ids after that add nothing. Characters of several
    tokens come whole, with their last token, and bytes that never become one as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._opens: dict[int, PartType] = {}  # what begins after a delimiter
        for kind, (start, end) in DELIMITERS.items() if tokenizer.has_tools else ():
            self._opens |= {tokenizer.special(start): kind, tokenizer.special(end): "text"}
        self._stops = {tokenizer.special("<|assistant_end|>"), tokenizer.bos}
        self._kind: PartType = "text"
        self._ended = False

    def feed(self, token: int) -> list[Part]:
        """What an id adds to the open part and, after a delimiter, the part that it opens, empty.

        The first may be without text.
        """
        added: Part = {"type": self._kind, "text": ""}
        if token in self._stops:
            self._ended = True
        if self._ended or token in self._opens:
            added = self.close()
        elif self._tokenizer.is_ordinary(token):
            added["text"] = self._utf8.decode(self._tokenizer.tokens[token])
        if self._ended or token not in self._opens:
            return [added]
        self._kind = self._opens[token]
        return [added, {"type": self._kind, "text": ""}]

    def close(self) -> Part:
        """What is left of an unfinished character, once no more ids come."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return {"type": self._kind, "text": rest}


def opening(system: str) -> str:
    """What stands before the first user message; a blank system message, which many send, says "".

    It would otherwise put an empty line before the question, which no model has learned.
    """
    return f"{system}\n\n" if system.strip() else ""


def _whole(value: object) -> Mapping[str, Any]:
    """A conversation, once it is seen to be one."""
    if not isinstance(value, Mapping) or "messages" not in value:
        raise ConversationError('a conversation must be a dict with the key "messages".')
    return value


def _weight(fields: Mapping[str, object], where: str) -> float:
    """The product of the fields of WEIGHTS that are there, 1 without any; null is as if absent.

    Raises ConversationError, naming the field behind `where`, for other values.
    """
    product: float = 1
    for name in WEIGHTS:
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, Decimal) and value.is_finite():  # Parquet's
            value = float(value)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConversationError(
                f"{where}{name} is {value!r:.60}; it must be a number from 0 (not learned) to 1, "
                "or true or false."
            )
        product *= value
    return product


def _refuse(fields: object, where: str) -> None:
    """Raises ConversationError for a field of REFUSED that says something."""
    if not isinstance(fields, Mapping):
        return
    for name, instead in REFUSED.items():
        value = fields.get(name)
        if not (value is None or (isinstance(value, str | list | dict) and not value)):
            raise ConversationError(
                f"{where}{name} is {value!r:.60}, which is not obeyed here: {instead}."
            )


def unused_fields(value: object, kind: str = "conversation") -> Iterator[tuple[str, str]]:
    """The fields of a conversation that are ignored: (of what in FIELDS, name) of each.

    A field that is null is none: columns of a Parquet file are in every row.
    """
    fields = value if isinstance(value, Mapping) else {}
    known = (*FIELDS[kind], *(() if kind == "part" else REFUSED))
    for name, said in fields.items():
        if said is not None and name not in known:
            yield kind, str(name)
    if kind != "part":
        field, inner = _INSIDE[kind]
        items = fields.get(field, value)
        for item in items if isinstance(items, list) else ():
            yield from unused_fields(item, inner)


def _check_unicode(text: str, where: str) -> None:
    r"""Raises ConversationError when a surrogate stands alone, as JSON's \ud800 does."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConversationError(
            f"{where} has a lone surrogate at character {error.start}; it must be valid Unicode."
        ) from error


def _segments(conversation: object) -> Iterator[tuple[str, bool, float]]:
    """What a conversation consists of, in order.

    Each is a text or the name of a special token, whether it is a name, and its weight in the loss.
    """
    whole = _whole(conversation)
    turns, of_all = _turns(whole["messages"]), _weight(whole, "")
    yield "<|bos|>", True, 0
    for role, parts, weight in turns:
        said = of_all * weight if role == "assistant" else 0
        yield f"<|{role}_start|>", True, 0
        for part in parts:
            learned = 0 if part["type"] == "python_output" else said
            if part["type"] == "text":
                yield part["text"], False, learned
                continue
            start, end = DELIMITERS[part["type"]]
            yield start, True, learned
            yield part["text"], False, learned
            yield end, True, learned
        yield f"<|{role}_end|>", True, said


def _special(name: str, specials: Mapping[str, int]) -> int:
    """The id of a special token of a conversation; only those of tools may be missing."""
    if name not in specials:
        raise ConversationError(
            f"the assistant calls a tool, but this tokenizer has no token {name}: it was trained "
            "with tokenizer.tool_tokens = false."
        )
    return specials[name]


def _turns(messages: Sequence[Message]) -> list[tuple[str, list[Part], float]]:
    """Checks messages; gives each one's role, parts and weight.

    The system's is merged into the first user's.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ConversationError("messages must be a list of at least one message.")
    system = ""
    turns: list[tuple[str, list[Part], float]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise _of_wrong_type(where, message, "it must be a dict with role and content")
        role, expected = message.get("role"), "assistant" if len(turns) % 2 else "user"
        if role != expected and not (role == "system" and index == 0):
            raise ConversationError(
                f"{where}.role is {role!r}; it must be {expected!r}: user and assistant take "
                "turns, after at most one system message."
            )
        parts = _parts(message.get("content"), role, f"{where}.content")
        weight = _weight(message, f"{where}.")
        if role == "system":
            system = opening(parts[0]["text"])
            continue
        if not turns:
            parts = [{"type": "text", "text": system + parts[0]["text"]}]
        turns.append((role, parts, weight))
    if not turns:
        raise ConversationError("messages has a system message only; a user message must follow.")
    return turns


def _parts(content: object, role: str, where: str) -> list[Part]:
    """The parts of a message's content, checked; `where` names it in errors."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if role != "assistant" or not isinstance(content, list | tuple):
        expected = "a str or a list of parts" if role == "assistant" else "a str"
        raise _of_wrong_type(where, content, f"for the {role} it must be {expected}")
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        if not isinstance(part, Mapping):
            raise _of_wrong_type(at, part, "it must be a dict with type and text")
        if (kind := part.get("type")) not in PART_TYPES:
            raise ConversationError(f"{at}.type is {kind!r}; it must be one of {PART_TYPES}.")
        if not isinstance(text := part.get("text"), str):
            raise _of_wrong_type(f"{at}.text", text, "it must be a str")
    return list(content)


def _of_wrong_type(where: str, value: object, expected: str) -> ConversationError:
    return ConversationError(f"{where} is of type {type(value).__name__}; {expected}.")
