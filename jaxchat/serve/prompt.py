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
from jaxchat.serve.unsupported import check_unsupported

REFUSED = {
    "functions": "the model has a calculator of its own and takes no functions",
}


def check_supported(body: GenerationRequest) -> None:
    """Raises ApiError 400 for fields that are not supported, OpenAI's and those of others."""
    check_unsupported(body)
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
    asked = -1 if body.most_tokens is None else body.most_tokens
    least = body.min_tokens or 0
    if 0 <= asked < least:
        text = f"min_tokens is {least} and max_tokens {asked}; it must not be above that."
        raise bad_request(text, "min_tokens")
    most = min(room if asked < 0 else asked, config.max_tokens or room, room)
    settings = sampling_settings(body, config)
    try:
        request = Request(
            tokens=tuple(tokens),
            max_tokens=most,
            min_tokens=min(least, most),
            alternatives=body.alternatives,
            grammar=grammar,
            **settings,
        )
    except EngineError as error:
        raise bad_request(str(error)) from error
    for name in ("logit_bias", "stop_token_ids"):
        ids = map(int, getattr(body, name) or ())
        if (worst := max(ids, default=0)) >= (vocab := model.tokenizer.vocab_size):
            raise bad_request(
                f"{name} has the id {worst}, and the vocabulary only {vocab}; encode with the "
                "model's tokenizer.",
                name,
            )
    return request


def sampling_settings(body: SamplingFields, config: ServeConfig) -> dict[str, Any]:
    """What the fields of a request say of the engine's: all but tokens, lengths, alternatives.

    Raises ApiError 400 if n is too high.
    """
    samples = body.n or 1
    if samples > config.samples:
        text = f"n is {samples}; at most {config.samples} are allowed. Send several requests."
        raise bad_request(text, "n")
    temperature = config.temperature if body.temperature is None else body.temperature
    stops = (body.stop,) if isinstance(body.stop, str) else body.stop or ()
    biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
    return {
        "temperature": 0.0 if body.top_p == 0 else temperature,  # only the likeliest is left
        "top_k": max(0, config.top_k if body.top_k is None else body.top_k),
        "top_p": body.top_p or 1.0,
        "min_p": body.min_p or 0.0,
        "repetition_penalty": body.repetition_penalty or 1.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "logit_bias": tuple((token, bias) for token, bias in biases.items() if bias),
        # -1 asks for any, in vLLM and llama.cpp
        "seed": secrets.randbits(32) if body.seed in (None, -1) else body.seed % 2**32,
        "n": samples,
        "stop": tuple(filter(None, stops)),  # some clients send "" for no stop text
        "stop_token_ids": tuple(body.stop_token_ids or ()),
        "include_stop": bool(body.include_stop_str_in_output),
        "ignore_eos": bool(body.ignore_eos),
    }


def too_long(length: int, context: int, what: str = "messages") -> ApiError:
    """The error for a prompt (the field `what`) that leaves no room for an answer."""
    verb = "take" if what.endswith("s") else "takes"
    return bad_request(
        # litellm looks for the first words, langchain-openai for "prompt is too long"
        f"This model's maximum context length is {context} tokens, and the {what} {verb} {length}: "
        f"the prompt is too long to leave room for an answer; shorten the {what}.",
        what,
        "context_length_exceeded",
    )
