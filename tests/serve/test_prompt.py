"""From the settings of a client's request to the engine's."""

import pytest
import tiny_model

from jaxchat.config.operations import ServeConfig
from jaxchat.serve import prompt
from jaxchat.serve.models import ServedModel
from jaxchat.serve.schema import ApiError, ChatRequest

CONFIG = ServeConfig()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return ServedModel("run", "sft", None, tokenizer, 1, 0, "fp", 64, None)


def body(*messages, **fields):
    given = [{"role": role, "content": content} for role, content in messages]
    return ChatRequest.model_validate({"messages": given, **fields})


@pytest.mark.parametrize("stop", ["", [], [""], ["", ""]])
def test_an_empty_stop_text_is_none(model, stop):
    request = prompt.engine_request(body(("user", "hi"), stop=stop), [1, 2], model, CONFIG)
    assert request.stop == ()


def test_settings_become_those_of_the_engine(model):
    asked = body(
        ("user", "hi"), temperature=0.5, top_p=0.9, top_k=7, seed=-2, n=3, stop=["a", "b"],
        max_completion_tokens=5, logprobs=True, top_logprobs=4,
    )  # fmt: skip
    request = prompt.engine_request(asked, [1, 2], model, CONFIG)
    assert (request.tokens, request.max_tokens, request.n) == ((1, 2), 5, 3)
    assert (request.temperature, request.top_p, request.top_k) == (0.5, 0.9, 7)
    assert (request.seed, request.stop, request.alternatives) == (2**32 - 2, ("a", "b"), 4)


def test_what_a_request_leaves_out_is_the_servers_to_say(model):
    config = ServeConfig(temperature=0.3, top_k=9, max_tokens=11)
    request = prompt.engine_request(body(("user", "hi")), [1], model, config)
    assert (request.temperature, request.top_k, request.max_tokens) == (0.3, 9, 11)
    assert (request.top_p, request.n, request.stop, request.alternatives) == (1.0, 1, (), 0)
    other = prompt.engine_request(body(("user", "hi")), [1], model, config)
    assert request.seed != other.seed  # one in four thousand million
    plain = prompt.engine_request(body(("user", "hi"), stop="x"), [1], model, CONFIG)
    assert (plain.max_tokens, plain.stop) == (63, ("x",))


def test_an_answer_is_cut_where_the_context_ends(model):
    asked = body(("user", "hi"), max_tokens=1000)
    assert prompt.engine_request(asked, [1] * 63, model, CONFIG).max_tokens == 1
    with pytest.raises(
        ApiError, match="This model's maximum context length is 64 tokens, and the messages take 64"
    ) as caught:
        prompt.engine_request(asked, [1] * 64, model, CONFIG)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_more_samples_than_are_allowed_are_refused(model):
    with pytest.raises(ApiError, match="n is 9; at most 8"):
        prompt.engine_request(body(("user", "hi"), n=9), [1], model, CONFIG)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("suffix", "after"),
        ("best_of", 2),
        ("mirostat", 1),
    ],
)
def test_what_is_not_supported_is_said(name, value):
    with pytest.raises(ApiError, match=f"{name} is not supported") as caught:
        prompt.check_supported(body(("user", "hi"), **{name: value}))
    assert (caught.value.status, caught.value.param) == (400, name)


def test_what_asks_for_nothing_is_accepted():
    empty = {"tools": [], "functions": None, "response_format": {"type": "text"}}
    none = {"logit_bias": {}, "frequency_penalty": 0, "presence_penalty": 0.0, "user": "me"}
    prompt.check_supported(body(("user", "hi"), **empty, **none))
    with pytest.raises(ApiError, match="top_logprobs needs logprobs"):
        prompt.check_supported(body(("user", "hi"), top_logprobs=3))
