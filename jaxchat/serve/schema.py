"""Request bodies and errors. Fields of a request that are not named here are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool
from starlette.exceptions import HTTPException

from jaxchat.serve.sampling_fields import Count, SamplingFields, Text


class ContentPart(BaseModel):
    """A piece of a message; only the assistant's may be `python` or `python_output`."""

    type: Literal["text", "python", "python_output"]
    text: Text


class InMessage(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart]


class Conversation(BaseModel):
    """Messages for a model; the last is the user's."""

    model: Annotated[Text, Field(max_length=256)] | None = None
    messages: Annotated[list[InMessage], Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a stream contains beside its text."""

    include_usage: StrictBool | None = None


class ChatRequest(SamplingFields, Conversation):
    """The body of /v1/chat/completions."""

    model_config = ConfigDict(title="ChatRequest")

    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    parts: StrictBool | None = None

    # Known, and refused unless empty.
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    logit_bias: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None


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
