"""Request bodies and errors. Of other fields see `unsupported`; the rest is ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from jaxchat.serve.sampling_fields import SamplingFields, SomeLength, Text

FORMAT = "what the answer must be: of the type text, json_object, or json_schema with a schema"
STRUCTURED = "the same as vLLM has it: one of json (a schema), regex, choice and json_object"
CHOICE = "auto, none, required or a function; the last two are answered by a call"
MAX_LOGPROBS = 5  # likeliest tokens of /v1/completions, as OpenAI has it


def _as_json(arguments: object) -> object:
    """The arguments of a call as JSON; some clients send them as an object."""
    if arguments is None or isinstance(arguments, dict):
        return json.dumps(arguments or {}, ensure_ascii=False)
    return arguments


def _readable(kind: object) -> object:
    """The type of a part. Raises PydanticCustomError for pictures and sounds."""
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file")):
        raise PydanticCustomError(
            "part", "The model reads text alone, no images, sounds and files; leave this part out"
        )
    return kind


class ContentPart(BaseModel):
    """A piece of a message; only the assistant's may be `python` or `python_output`."""

    type: Annotated[Literal["text", "python", "python_output"], BeforeValidator(_readable)]
    text: Text


class CalledFunction(BaseModel):
    """What a call of a tool names, and with what."""

    name: Text
    arguments: Annotated[Text, BeforeValidator(_as_json)] = "{}"


class ToolCall(BaseModel):
    """A call of a client's tool."""

    id: Text | None = None
    function: CalledFunction

    @property
    def text(self) -> str:
        """The call as code."""
        return f"{self.function.name}({self.function.arguments})"


class InMessage(BaseModel):
    """One message of a conversation; only the assistant's may be without content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None  # of the assistant
    tool_call_id: Text | None = None  # of the call whose result a message of the role tool is


ModelName = Annotated[Text, Field(max_length=256)]


class Conversation(BaseModel):
    """Messages for a model; a last one of the assistant is continued."""

    model: ModelName | None = None
    messages: Annotated[list[InMessage], Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream contains beside its text."""

    include_usage: StrictBool | None = None


class GenerationRequest(SamplingFields):
    """What the bodies of all paths that generate have in common."""

    subject: ClassVar[str] = "messages"  # the field that is answered

    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    response_format: Annotated[Any, Field(description=FORMAT)] = None
    structured_outputs: Annotated[Any, Field(description=STRUCTURED)] = None
    guided_json: Annotated[Any, Field(description="as json in structured_outputs")] = None
    guided_regex: Annotated[Any, Field(description="as regex in structured_outputs")] = None
    guided_choice: Annotated[Any, Field(description="as choice in structured_outputs")] = None

    # Known, and refused unless empty.
    guided_grammar: Any = None
    guided_whitespace_pattern: Any = None

    @property
    def most_tokens(self) -> int | None:
        """The tokens that are asked for; None: what the context leaves."""
        return None

    @property
    def alternatives(self) -> int:
        """The likeliest tokens that are asked for in each token's place."""
        return 0


class ChatRequest(GenerationRequest, Conversation):
    """The body of /v1/chat/completions."""

    model_config = ConfigDict(title="ChatRequest")

    max_completion_tokens: SomeLength | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    parts: StrictBool | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    tools: Any = None  # what the model may call
    tool_choice: Annotated[Any, Field(description=CHOICE)] = None

    functions: Any = None  # known, and refused unless empty

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else 0


class ErrorDetail(BaseModel):
    """The error itself."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of an error response."""

    error: ErrorDetail


class TokenCount(BaseModel):
    """The response of /v1/count."""

    prompt_tokens: int
    context: int


class ApiError(HTTPException):
    """An error response: its status, its body and its own headers.

    An HTTPException, so that FastAPI lets it through while it reads a body.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """Its ErrorBody."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": "server_error" if self.status >= 500 else kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An error of the request itself."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, seconds: int) -> ApiError:
    """The queue is full; `seconds` is when to try again."""
    return ApiError(429, message, code="queue_full", headers={"retry-after": str(seconds)})


def unavailable(message: str, code: str = "unavailable", seconds: int = 5) -> ApiError:
    """The server or the model takes no requests now; `seconds` is when to try again."""
    return ApiError(503, message, code=code, headers={"retry-after": str(seconds)})
