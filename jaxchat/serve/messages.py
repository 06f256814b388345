"""From a client's messages to the ids of a prompt, in the order of turns that a model has learned.

A model knows the user's turns and the assistant's, one after the other, and calls of Python within
the latter. What clients send beside that is put into this form:

- System and developer messages, wherever they stand, come before the first of the user.
- Consecutive messages of one role are joined.
- An assistant who speaks first answers an empty turn of the user.
- A call of a client's tool and its result are a call of Python and its output, within the
  assistant's turn: so the model has learned to use results. A tokenizer without tokens for calls
  has the call as text and the result as the user's turn.
- A last turn of the assistant is continued.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jaxchat.config.operations import ServeConfig
from jaxchat.serve.schema import ChatRequest, InMessage, bad_request
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import (
    ConversationError,
    Message,
    Part,
    PartType,
    render,
    render_prompt,
)

GAP = "\n\n"  # between texts of one role that are joined
ASSISTANT = ("assistant", "tool")  # roles within the assistant's turn


def check_limits(messages: Sequence[InMessage], limits: ServeConfig) -> None:
    """Raises ApiError 400 for a conversation that is larger than allowed."""
    size = sum(len(text) for message in messages for text in _texts(message))
    for count, most, sentence in (
        (len(messages), limits.messages, "there are {} messages"),
        (size, limits.characters, "the messages have {} characters"),
    ):
        if count > most:
            text = f"{sentence.format(count)}; at most {most} are allowed."
            raise bad_request(text, "messages")


def check_turn(body: ChatRequest) -> None:
    """Raises ApiError 400 where the turn that a client asks for is not the one that comes next."""
    begin, resume = body.add_generation_prompt, body.continue_final_message
    spoken = [m.role for m in body.messages if m.role not in ("system", "developer")]
    ends = bool(spoken) and spoken[-1] in ASSISTANT
    wrong = None
    if resume and begin:
        wrong = "are both true; a message is either continued or followed by a new one"
    elif not ends and (resume or begin is False):
        wrong = "ask for a last message of the assistant to be continued, and the last is not its"
    elif ends and resume is False and begin is not False and spoken[-1] == "assistant":
        wrong = (
            "ask for a new message after the assistant's own; end with the user's, or let the last "
            "be continued"
        )
    if wrong:
        text = f"continue_final_message and add_generation_prompt {wrong}."
        raise bad_request(text, "continue_final_message")


def prompt_tokens(messages: Sequence[InMessage], tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation, up to where the assistant speaks, or continues to speak.

    Blank messages add nothing, but for a last one of the assistant. Raises ApiError 400 for
    messages that have neither the user's nor the assistant's, or are malformed.
    """
    system, turns = _turns(messages, tokenizer.has_tools)
    if not turns:
        raise bad_request(
            "messages must have at least one of the user or the assistant; there are only system "
            "messages.",
            "messages",
        )
    if turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": ""})
    opening: list[Message] = [{"role": "system", "content": GAP.join(system)}] if system else []
    whole = [*opening, *turns]
    try:
        if turns[-1]["role"] == "user":
            return render_prompt(whole, tokenizer)
        return render({"messages": whole}, tokenizer)[0][:-1]  # without <|assistant_end|>
    except ConversationError as error:
        raise bad_request(str(error), "messages") from error


def _turns(messages: Sequence[InMessage], has_tools: bool) -> tuple[list[str], list[Message]]:
    """The system texts; the other messages, consecutive ones of one role joined."""
    system: list[str] = []
    said: list[tuple[str, list[Part]]] = []
    for role, parts in _spoken(messages, has_tools):
        if role in ("system", "developer"):
            system += [text] if (text := _text(parts)).strip() else []
        elif said and said[-1][0] == role:
            said[-1] = (role, _joined(said[-1][1], parts))
        else:
            said.append((role, parts))
    turns: list[Message] = [
        {"role": "assistant", "content": parts}
        if role == "assistant"
        else {"role": "user", "content": _text(parts)}
        for role, parts in said
    ]
    return system, turns


def _spoken(messages: Sequence[InMessage], has_tools: bool) -> Iterator[tuple[str, list[Part]]]:
    """Role and parts of what is said, calls of tools and their results in the model's form."""
    kind: PartType = "python" if has_tools else "text"
    calls: dict[str, Part] = {}  # without a result as yet, by id
    for index, message in enumerate(messages):
        parts = _parts(message, index)
        if message.role == "tool":
            name = message.tool_call_id or ""
            called = calls.pop(name if name in calls else next(iter(calls), ""), None)
            if called is not None:
                yield "assistant", [called]
            output: Part = {"type": "python_output", "text": _text(parts)}
            yield ("assistant", [output]) if has_tools else ("user", parts)
            continue
        for unanswered in calls.values():
            yield "assistant", [unanswered]
        yield message.role, parts
        calls = {
            call.id or str(number): {"type": kind, "text": call.text}
            for number, call in enumerate(message.tool_calls or ())
        }
    if calls:
        raise bad_request(
            "the last message calls a tool; its result must follow, as a message of the role tool.",
            "messages",
        )


def _parts(message: InMessage, index: int) -> list[Part]:
    """A message's content as parts. Raises ApiError 400 for content that its role cannot have."""
    where = f"messages[{index}].content"
    content = message.content
    if content is None:
        if message.role != "assistant":
            text = f"{where} is missing; only an assistant's message may have none."
            raise bad_request(text, where)
        content = ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if message.role != "assistant" and any(part.type != "text" for part in content):
        raise bad_request(
            f"messages[{index}] is of role {message.role}: its parts must be of type text.", where
        )
    return [{"type": part.type, "text": part.text} for part in content]


def _joined(before: list[Part], after: list[Part]) -> list[Part]:
    """Two messages of one role as one; where one is blank, the other alone."""
    if not _text(after).strip() or not _text(before).strip():
        return before if _text(before).strip() else after
    texts = before[-1]["type"] == after[0]["type"] == "text"
    gap: list[Part] = [{"type": "text", "text": GAP}] if texts else []
    return [*before, *gap, *after]


def _text(parts: Sequence[Part]) -> str:
    return "".join(part["text"] for part in parts)


def _texts(message: InMessage) -> Iterator[str]:
    """All texts of a message, those of its calls included."""
    if isinstance(message.content, str):
        yield message.content
    else:
        yield from (part.text for part in message.content or ())
    yield from (call.text for call in message.tool_calls or ())
