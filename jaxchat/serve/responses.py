"""OpenAI's Responses API, as far as it needs no memory: a conversation in, a text or a call out.

Nothing is stored: `store` is answered with false, and what a client stored elsewhere is refused.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from jaxchat.inference.request import FinishReason
from jaxchat.serve.response_items import CallItem, Event, MessageItem
from jaxchat.serve.sampling_fields import Count, Text
from jaxchat.serve.schema import (
    CalledFunction,
    GenerationRequest,
    InMessage,
    ModelName,
    ToolCall,
    bad_request,
)
from jaxchat.serve.streaming import Answer, Detokenizer, PendingRequest, to_json

TEXTS = ("input_text", "output_text", "text", "refusal")  # types of parts that are text
SKIPPED = ("reasoning",)  # types of items that a model without reasoning has no use for
STORED = {
    "previous_response_id": "send the conversation itself as input",
    "conversation": "send the conversation itself as input",
    "background": "an answer is sent at once, or streamed",
    "prompt": "send the text itself as input or instructions",
}


class InputPart(BaseModel):
    """A piece of a message."""

    type: Text = "input_text"
    text: Text | None = None
    refusal: Text | None = None


class InputItem(BaseModel):
    """A message, a call of a client's tool, or its result."""

    type: Text = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Text | list[InputPart] | None = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: Text | None = None
    output: Text | list[InputPart] | None = None


class ResponsesRequest(GenerationRequest):
    """The body of /v1/responses."""

    model_config = ConfigDict(title="ResponsesRequest")
    subject: ClassVar[str] = "input"

    model: ModelName | None = None
    input: Text | Annotated[list[InputItem], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    store: Any = None
    tools: Any = None
    tool_choice: Any = None
    text: Any = None  # {"format": {"type": "text"}}, or of the types of response_format

    # Known, and refused unless empty.
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def format(self) -> Any:
        """What the answer must be, as `response_format` says it elsewhere."""
        return self.text.get("format") if isinstance(self.text, dict) else None


def check_response(body: ResponsesRequest) -> None:
    """Raises ApiError 400 for what is not supported."""
    for name, instead in STORED.items():
        if getattr(body, name):
            raise bad_request(f"{name} is not supported: nothing is stored; {instead}.", name)
    if body.n not in (None, 1):
        raise bad_request("n is not supported here: a response has one answer.", "n")


def read_input(body: ResponsesRequest) -> list[InMessage]:
    """Instructions and input as messages. Raises ApiError 400 for items that are not understood."""
    found = [InMessage(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*found, InMessage(role="user", content=body.input)]
    for number, item in enumerate(body.input):
        where = f"input[{number}]"
        if item.type == "message":
            text = _text(item.content, f"{where}.content")
            found.append(InMessage(role=item.role, content=text))
        elif item.type == "function_call":
            function = CalledFunction(name=item.name or "", arguments=item.arguments or "{}")
            call = ToolCall(id=item.call_id, function=function)
            if found and found[-1].tool_calls:
                found[-1].tool_calls.append(call)
            else:
                found.append(InMessage(role="assistant", tool_calls=[call]))
        elif item.type == "function_call_output":
            text = _text(item.output, f"{where}.output")
            found.append(InMessage(role="tool", tool_call_id=item.call_id, content=text))
        elif item.type not in SKIPPED:
            raise bad_request(
                f"{where} is of type {item.type!r:.80}; it must be message, function_call or "
                "function_call_output.",
                where,
            )
    return found


def _text(content: str | list[InputPart] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.type not in TEXTS:
            raise bad_request(
                f"{where}[{number}] is of type {part.type!r:.80}; the model reads only text "
                "(input_text, output_text).",
                f"{where}[{number}]",
            )
    return "".join(part.text or part.refusal or "" for part in content)


class ResponseAnswer(Answer):
    """The answer to one request: whole, or as events."""

    def __init__(
        self,
        pending: PendingRequest,
        body: ResponsesRequest,
        cancel: Callable[[PendingRequest], object],
        functions: Sequence[str] = (),
    ) -> None:
        """`functions`: the answer is a call of one of them."""
        super().__init__([pending], cancel)
        self._pending, self._body = pending, body
        self._detokenizer = Detokenizer.of(pending.model.tokenizer, pending.request, logprobs=False)
        self._id, self._created = f"resp_{secrets.token_hex(12)}", int(time.time())
        self._item = CallItem(functions) if functions else MessageItem()
        self._tokens = 0
        self._reason: FinishReason | None = None  # None: not ended

    async def _events(self) -> AsyncIterator[Event]:
        for event in self._item.open():
            yield event
        async for new in self._pending.deltas():
            self._tokens += len(new.tokens)
            self._reason = new.finish_reason
            for piece in new.split() if self._body.stream else [new]:
                deltas = self._detokenizer.feed(piece)
                text = "".join(delta.text for delta in deltas if delta.part == "text")
                for event in self._item.feed(text):
                    yield event
        for event in self._item.close(self._status):
            yield event

    async def whole(self) -> dict[str, Any]:
        async for _ in self._events():
            pass
        return self._response()

    async def _chunks(self) -> AsyncIterator[bytes]:
        numbers = itertools.count()
        for kind in ("response.created", "response.in_progress"):
            yield sent(kind, next(numbers), response=self._response())
        async for kind, fields in self._events():
            yield sent(f"response.{kind}", next(numbers), **fields)
        yield sent(f"response.{self._status}", next(numbers), response=self._response())

    @property
    def _status(self) -> str:
        return {None: "in_progress", "stop": "completed", "length": "incomplete"}[self._reason]

    def _response(self) -> dict[str, Any]:
        body, request = self._body, self._pending.request
        ended = self._reason is not None
        cut = {"reason": "max_output_tokens"} if self._reason == "length" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self._pending.model.id,
            "output": self._item.output(self._status) if ended else [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": request.temperature,
            "text": {"format": body.format or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "user": None,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = len(self._pending.request.tokens)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._pending.known, "cache_write_tokens": 0},
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + self._tokens,
        }


def sent(kind: str, number: int, **fields: Any) -> bytes:
    """A server-sent event of a stream of responses, the one of this number."""
    value = {"type": kind, "sequence_number": number, **fields}
    return f"event: {kind}\ndata: {to_json(value)}\n\n".encode()
