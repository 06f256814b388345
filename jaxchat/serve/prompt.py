"""From a client's request to the engine's."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from jaxchat.config.operations import ServeConfig
from jaxchat.inference.engine import EngineError, Request
from jaxchat.serve.models import ServedModel
from jaxchat.serve.sampling_fields import SamplingFields
from jaxchat.serve.schema import ApiError, ChatRequest, InMessage, bad_request
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Message, Part, render_prompt

GAP = "\n\n"  # between messages of one role that are joined
REFUSED = {
    "tools": "the model has a calculator of its own and takes no other tools",
    "functions": "the model has a calculator of its own and takes no functions",
    "response_format": "answers are text",
    "logit_bias": "biases are not supported",
    "frequency_penalty": "penalties are not supported",
    "presence_penalty": "penalties are not supported",
}


def check_limits(messages: Sequence[InMessage], limits: ServeConfig) -> None:
    """Raises ApiError 400 for a conversation that is larger than allowed."""
    size = sum(len(part["text"]) for message in messages for part in _parts(message))
    for count, most, sentence in (
        (len(messages), limits.messages, "there are {} messages"),
        (size, limits.characters, "the messages have {} characters"),
    ):
        if count > most:
            text = f"{sentence.format(count)}; at most {most} are allowed."
            raise bad_request(text, "messages")


def check_supported(body: ChatRequest) -> None:
    """Raises ApiError 400 for fields of OpenAI's interface that are not supported."""
    for name, why in REFUSED.items():
        value = getattr(body, name)
        plain = name == "response_format" and value == {"type": "text"}
        if value and not plain:
            raise bad_request(f"{name} is not supported: {why}; leave it out.", name)
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")


def prompt_tokens(messages: Sequence[InMessage], tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation, up to where the assistant speaks.

    System and developer messages, wherever they stand, come before the first of the user;
    consecutive messages of one role are joined. Blank ones of these add nothing. Raises ApiError
    400 if the first or the last message is not the user's.
    """
    system, turns = _turns(messages)
    if not turns or turns[0]["role"] != "user" or turns[-1]["role"] != "user":
        raise bad_request(
            "messages must begin and end with a user message (system messages aside).", "messages"
        )
    opening: list[Message] = [{"role": "system", "content": GAP.join(system)}] if system else []
    return render_prompt([*opening, *turns], tokenizer)


def engine_request(
    body: ChatRequest, tokens: Sequence[int], model: ServedModel, config: ServeConfig
) -> Request:
    """The engine's request. Raises ApiError 400 if the prompt leaves no room, or n is too high.

    Asking for more tokens than the context has left is no error: the answer ends with "length".
    """
    room = model.context - len(tokens)
    if room < 1:
        raise too_long(len(tokens), model.context)
    asked = body.max_completion_tokens or body.max_tokens or room
    settings = sampling_settings(body, config)
    try:
        return Request(
            tokens=tuple(tokens),
            max_tokens=min(asked, config.max_tokens or room, room),
            alternatives=(body.top_logprobs or 0) if body.logprobs else 0,
            **settings,
        )
    except EngineError as error:
        raise bad_request(str(error)) from error


def sampling_settings(body: SamplingFields, config: ServeConfig) -> dict[str, Any]:
    """What the fields of a request say of the engine's: all but tokens, max_tokens, alternatives.

    Raises ApiError 400 if n is too high.
    """
    samples = body.n or 1
    if samples > config.samples:
        raise bad_request(f"n is {samples}; at most {config.samples} are allowed.", "n")
    stops = (body.stop,) if isinstance(body.stop, str) else body.stop or ()
    return {
        "temperature": config.temperature if body.temperature is None else body.temperature,
        "top_k": config.top_k if body.top_k is None else body.top_k,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "seed": secrets.randbits(32) if body.seed is None else body.seed % 2**32,
        "n": samples,
        "stop": tuple(filter(None, stops)),  # some clients send "" for no stop text
    }


def too_long(length: int, context: int) -> ApiError:
    """The error for a prompt that leaves no room for an answer."""
    return bad_request(
        f"this model's context is {context} tokens, and the messages take {length}, which leaves "
        "no room for an answer; shorten the messages.",
        "messages",
        "context_length_exceeded",
    )


def _parts(message: InMessage) -> list[Part]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [{"type": part.type, "text": part.text} for part in message.content]


def _turns(messages: Sequence[InMessage]) -> tuple[list[str], list[Message]]:
    """The system texts; the other messages, consecutive ones of one role joined."""
    system: list[str] = []
    said: list[tuple[str, list[Part]]] = []
    for index, message in enumerate(messages):
        parts = _parts(message)
        if message.role != "assistant" and any(part["type"] != "text" for part in parts):
            raise bad_request(
                f"messages[{index}] is of role {message.role}: its parts must be of type text.",
                f"messages[{index}].content",
            )
        if message.role in ("system", "developer"):
            system += [text] if (text := _text(parts)).strip() else []
        elif said and said[-1][0] == message.role:
            said[-1] = (message.role, _joined(said[-1][1], parts))
        else:
            said.append((message.role, parts))
    turns: list[Message] = [
        {"role": "assistant", "content": parts}
        if role == "assistant"
        else {"role": "user", "content": _text(parts)}
        for role, parts in said
    ]
    return system, turns


def _joined(before: list[Part], after: list[Part]) -> list[Part]:
    """Two messages of one role as one; where one is blank, the other alone."""
    if not _text(after).strip() or not _text(before).strip():
        return before if _text(before).strip() else after
    return [*before, {"type": "text", "text": GAP}, *after]


def _text(parts: Sequence[Part]) -> str:
    return "".join(part["text"] for part in parts)
