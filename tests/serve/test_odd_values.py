"""The table of docs/serving.md: values that clients send, each taken or refused as it says."""

import json
import re
from pathlib import Path

import pytest
import tiny_model
from pydantic import ValidationError

import jaxchat
from jaxchat.config.operations import ServeConfig
from jaxchat.inference.request import Request
from jaxchat.serve import prompt
from jaxchat.serve.models import ServedModel
from jaxchat.serve.schema import ApiError, ChatRequest
from jaxchat.serve.texts import CompletionRequest
from jaxchat.serve.unsupported import FIELDS, check_unsupported

DOCS = (Path(jaxchat.__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
ROOM = 54  # of a context of 64

# what is sent, and what the engine gets of it
TAKEN = [
    ({"max_tokens": -1}, {"max_tokens": ROOM}),
    ({"max_completion_tokens": -1}, {"max_tokens": ROOM}),
    ({"max_tokens": 50.0}, {"max_tokens": 50}),
    ({"max_tokens": 10**6}, {"max_tokens": ROOM}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"top_k": 0}, {"top_k": 0}),
    ({"top_k": 50.0}, {"top_k": 50}),
    ({"top_k": 10**6}, {"top_k": 10**6}),
    ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
    ({"top_p": 0.0, "temperature": 1.0}, {"temperature": 0.0, "top_p": 1.0}),
    ({"top_p": 1}, {"top_p": 1.0}),
    ({"min_p": 0}, {"min_p": 0.0}),
    ({"temperature": 2.5}, {"temperature": 2.5}),
    ({"temperature": 10}, {"temperature": 10}),
    ({"seed": 7.0}, {"seed": 7}),
    ({"seed": -2}, {"seed": 2**32 - 2}),
    ({"n": 2.0}, {"n": 2}),
    ({"stop": ""}, {"stop": ()}),
    ({"stop": ["", "x"]}, {"stop": ("x",)}),
    ({"stop_token_ids": [5.0]}, {"stop_token_ids": (5,)}),
    ({"min_tokens": 60}, {"min_tokens": ROOM}),
    ({"logit_bias": {"5": 3, "6": 0, "7": -100}}, {"logit_bias": ((5, 3), (7, -100))}),
    ({"logit_bias": {}}, {"logit_bias": ()}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"include_stop_str_in_output": True}, {"include_stop": True}),
    (
        {"repetition_penalty": 1.2, "frequency_penalty": -2, "presence_penalty": 2},
        {"repetition_penalty": 1.2, "frequency_penalty": -2, "presence_penalty": 2},
    ),
]
REFUSED = [
    ({"max_tokens": 0}, "max_tokens", "An answer has at least one token"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "An answer has at least one token"),
    ({"max_tokens": -2}, "max_tokens", "greater than or equal to -1"),
    ({"max_tokens": 50.5}, "max_tokens", "valid integer"),
    ({"max_tokens": "50"}, "max_tokens", "valid integer"),
    ({"max_tokens": True}, "max_tokens", "valid integer"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "min_tokens is 9 and max_tokens 8"),
    ({"top_k": -2}, "top_k", "greater than or equal to -1"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_p": "0.9"}, "top_p", "valid number"),
    ({"min_p": 1.1}, "min_p", "less than or equal to 1"),
    ({"temperature": 10.5}, "temperature", "less than or equal to 10"),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 9}, "n", "n is 9; at most 8 are allowed"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
    ({"presence_penalty": -3}, "presence_penalty", "greater than or equal to -2"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
    ({"logit_bias": {"hello": 1}}, "logit_bias.hello", "match pattern"),
    ({"logit_bias": [[5, 1]]}, "logit_bias", "valid dictionary"),
    ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias", "at most 300"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "logit_bias has the id 99999"),
    ({"stop_token_ids": [99999]}, "stop_token_ids", "stop_token_ids has the id 99999"),
    ({"stop_token_ids": list(range(17))}, "stop_token_ids", "at most 16"),
    ({"ignore_eos": "yes"}, "ignore_eos", "valid boolean"),
    ({"best_of": 2}, "best_of", "best_of is not supported: answers are not ranked"),
    ({"mirostat": 2}, "mirostat", "mirostat is not supported"),
    ({"typical_p": 0.9}, "typical_p", "typical_p is not supported"),
    ({"dry_multiplier": 0.8}, "dry_multiplier", "use repetition_penalty"),
    ({"repeat_penalty": 1.1}, "repeat_penalty", "this server calls it repetition_penalty"),
    ({"prompt_logprobs": 0}, "prompt_logprobs", "prompt_logprobs is not supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "reads and writes text"),
    ({"echo": True}, "echo", "only /v1/completions repeats a prompt"),
]
IGNORED = {
    "user": "me", "store": True, "metadata": {"a": [1, {}]}, "service_tier": "flex", "priority": 3,
    "safety_identifier": "x", "prompt_cache_key": "x", "prediction": {"type": "content"},
    "reasoning_effort": "low", "verbosity": "low", "parallel_tool_calls": True,
    "chat_template_kwargs": {"enable_thinking": False}, "request_id": "x", "cache_salt": "x",
    "cache_prompt": True, "id_slot": 1, "timings_per_token": True, "keep_alive": "5m",
    "mirostat_tau": 5, "mirostat_eta": 0.1, "dry_base": 1.75, "dry_allowed_length": 2,
    "xtc_threshold": 0.1, "repeat_last_n": 64, "spaces_between_special_tokens": True,
}  # fmt: skip
NULLS = (
    "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "frequency_penalty", "presence_penalty", "logit_bias", "max_tokens", "max_completion_tokens",
    "min_tokens", "ignore_eos", "n", "seed", "stop", "stop_token_ids", "logprobs", "top_logprobs",
    "include_stop_str_in_output", "parts", "tools", "tool_choice", "functions", "response_format",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return ServedModel("run", "sft", None, tiny_model.make_tokenizer(), 1, 0, "fp", 64, None)


def request(model, fields):
    messages = [{"role": "user", "content": "hi"}]
    body = ChatRequest.model_validate({"messages": messages, **fields})
    prompt.check_supported(body)
    return prompt.engine_request(body, [1] * 10, model, ServeConfig())


@pytest.mark.parametrize(("fields", "got"), TAKEN)
def test_values_that_are_taken(model, fields, got):
    made = request(model, fields)
    assert {name: getattr(made, name) for name in got} == got


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_values_that_are_refused(model, fields, param, message):
    with pytest.raises((ApiError, ValidationError)) as caught:
        request(model, fields)
    error = caught.value
    if isinstance(error, ApiError):
        assert (error.status, error.param) == (400, param)
        assert message in error.message
    else:
        (first, *_) = error.errors()
        assert ".".join(map(str, first["loc"])).startswith(param)
        assert message in first["msg"]


def test_minus_one_is_no_seed_as_in_vllm_and_llama_cpp(model):
    assert request(model, {"seed": -1}).seed != request(model, {"seed": -1}).seed


def test_null_is_as_if_it_were_left_out(model):
    plain = request(model, {"seed": 3})
    assert request(model, dict.fromkeys(NULLS) | {"seed": 3}) == plain
    assert request(model, dict.fromkeys(FIELDS) | {"seed": 3}) == plain


def test_what_changes_nothing_is_ignored(model):
    assert request(model, IGNORED | {"seed": 3}) == request(model, {"seed": 3})
    assert isinstance(request(model, IGNORED), Request)


@pytest.mark.parametrize("name", sorted({*FIELDS} - {*ChatRequest.model_fields}))
def test_a_field_that_is_not_known_is_refused_unless_it_asks_for_nothing(model, name):
    for neutral in (None, "", [], *FIELDS[name].neutral):
        request(model, {name: neutral})
    with pytest.raises(ApiError, match=f"{name} is not supported: .*; leave it out") as caught:
        request(model, {name: {"x": 1}})
    assert (caught.value.status, caught.value.param) == (400, name)


def test_completions_refuse_the_same(model):
    body = CompletionRequest.model_validate({"prompt": "hi", "mirostat": 1, "max_tokens": -1})
    with pytest.raises(ApiError, match="mirostat is not supported"):
        check_unsupported(body)
    got = prompt.engine_request(body, [1] * 10, model, ServeConfig())
    assert got.max_tokens == ROOM


@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "video_url", "file"])
def test_parts_that_are_no_text_are_refused_with_a_sentence(kind):
    content = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {"url": "x"}}]
    with pytest.raises(ValidationError, match="reads text alone, no images, sounds and files"):
        ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]})


def test_every_value_in_the_table_is_one_of_these():
    cases = [fields for fields, *_ in [*TAKEN, *REFUSED]] + [
        {"seed": -1},
        {"stop": []},
        {"stop": [""]},
    ]
    table = DOCS[DOCS.index("### Values that clients send") :].split("### ")[1]
    values = re.findall(r"`(\w+): ([^`]+)`(?=[^|\n]*\|)", table)
    assert len(values) >= 15
    for name, value in values:
        assert {name: json.loads(value)} in cases, (name, value)


def test_the_documentation_names_every_field():
    named = {name for fields, *_ in [*TAKEN, *REFUSED] for name in fields}
    for name in sorted({*named, *FIELDS, *IGNORED, *NULLS} - {"tools", "tool_choice"}):
        assert f"`{name}" in DOCS, name
