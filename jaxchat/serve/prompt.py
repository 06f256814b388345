"""From the settings of a client's request to the engine's request."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from jaxchat.config.operations import ServeConfig
from jaxchat.inference.engine import EngineError, Request
from jaxchat.inference.grammar import CompiledGrammar
from jaxchat.serve.models import ServedModel
from jaxchat.serve.responses import ResponsesRequest
from jaxchat.serve.sampling_fields import SamplingFields
from jaxchat.serve.schema import ApiError, ChatRequest, GenerationRequest, bad_request
from jaxchat.serve.tools import check_tools

REFUSED = {
    "functions": "the model has a calculator of its own and takes no functions",
    "logit_bias": "biases are not supported",
    "frequency_penalty": "penalties are not supported",
    "presence_penalty": "penalties are not supported",
}


def check_supported(body: GenerationRequest) -> None:
    """Raises ApiError 400 for fields of OpenAI's interface that are not supported."""
    for name, why in REFUSED.items():
        value = getattr(body, name, None)
        if value:
            raise bad_request(f"{name} is not supported: {why}; leave it out.", name)
    if isinstance(body, ChatRequest | ResponsesRequest):
        check_tools(body)
    if isinstance(body, ChatRequest) and body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")


def engine_request(
    body: GenerationRequest,
    tokens: Sequence[int],
    model: ServedModel,
    config: ServeConfig,
    grammar: CompiledGrammar | None = None,
) -> Request:
    """The engine's request. Raises ApiError 400 if the prompt leaves no room, or n is too high.

    Asking for more tokens than the context has left is no error: the answer ends with "length".
    """
    room = model.context - len(tokens)
    if room < 1:
        raise too_long(len(tokens), model.context, body.subject)
    asked = body.most_tokens or room
    settings = sampling_settings(body, config)
    try:
        return Request(
            tokens=tuple(tokens),
            max_tokens=min(asked, config.max_tokens or room, room),
            alternatives=body.alternatives,
            grammar=grammar,
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


def too_long(length: int, context: int, what: str = "messages") -> ApiError:
    """The error for a prompt (the field `what`) that leaves no room for an answer."""
    verb = "take" if what.endswith("s") else "takes"
    return bad_request(
        # litellm looks for these words
        f"This model's maximum context length is {context} tokens, and the {what} {verb} {length}, "
        f"which leaves no room for an answer; shorten the {what}.",
        what,
        "context_length_exceeded",
    )
