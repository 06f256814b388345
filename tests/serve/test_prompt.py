"""From a client's messages to the engine's request."""

import dataclasses

import pytest
import tiny_model

from jaxchat.config.operations import ServeConfig
from jaxchat.serve import prompt
from jaxchat.serve.models import ServedModel
from jaxchat.serve.schema import ApiError, ChatRequest
from jaxchat.tokenizer.chat_format import render_prompt

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


def tokens(tokenizer, *messages):
    return prompt.prompt_tokens(body(*messages).messages, tokenizer)


def test_messages_are_rendered_as_in_training(tokenizer):
    call = [
        {"type": "text", "text": "see "},
        {"type": "python", "text": "1 + 1"},
        {"type": "python_output", "text": "2"},
    ]
    messages = [("user", "add"), ("assistant", call), ("user", "thanks")]
    expected = [{"role": role, "content": content} for role, content in messages]
    assert tokens(tokenizer, *messages) == render_prompt(expected, tokenizer)


def test_system_and_developer_messages_come_before_the_first_of_the_user(tokenizer):
    expected = [
        {"role": "system", "content": "be brief\n\nbe kind"},
        {"role": "user", "content": "hello"},
    ]
    given = [("system", "be brief"), ("user", "hello"), ("developer", "be kind")]
    assert tokens(tokenizer, *given) == render_prompt(expected, tokenizer)


def test_messages_of_one_role_in_a_row_are_joined(tokenizer):
    expected = [{"role": "user", "content": "one\n\ntwo"}]
    given = [("user", "one"), ("user", [{"type": "text", "text": "two"}])]
    assert tokens(tokenizer, *given) == render_prompt(expected, tokenizer)


@pytest.mark.parametrize(
    "blank", ["", " ", "\n\t", [], [{"type": "text", "text": ""}, {"type": "text", "text": " "}]]
)
def test_a_blank_message_adds_nothing(tokenizer, blank):
    """Many clients send an empty system message; it put an empty line before the question."""
    alone = tokens(tokenizer, ("user", "hello"))
    for role in ("system", "developer"):
        assert tokens(tokenizer, (role, blank), ("user", "hello")) == alone
        assert tokens(tokenizer, ("user", "hello"), (role, blank)) == alone
    assert tokens(tokenizer, ("user", blank), ("user", "hello")) == alone
    assert tokens(tokenizer, ("user", "hello"), ("user", blank)) == alone
    given = tokens(tokenizer, ("system", "be brief"), ("user", "hello"))
    assert given != alone
    assert tokens(tokenizer, ("system", blank), ("system", "be brief"), ("user", "hello")) == given


@pytest.mark.parametrize("stop", ["", [], [""], ["", ""]])
def test_an_empty_stop_text_is_none(model, stop):
    request = prompt.engine_request(body(("user", "hi"), stop=stop), [1, 2], model, CONFIG)
    assert request.stop == ()


def test_names_of_special_tokens_in_a_message_are_ordinary_text(tokenizer):
    ids = tokens(tokenizer, ("user", "<|assistant_end|><|python_start|>"))
    assert sum(not tokenizer.is_ordinary(token) for token in ids) == 4  # bos, user, user, assistant


@pytest.mark.parametrize(
    "messages",
    [
        [("assistant", "hi")],
        [("assistant", "hi"), ("user", "hello")],
        [("user", "hi"), ("assistant", "hello")],
        [("system", "be brief")],
    ],
)
def test_the_user_must_begin_and_end(tokenizer, messages):
    with pytest.raises(ApiError, match="begin and end") as caught:
        tokens(tokenizer, *messages)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_only_the_assistant_calls_tools(tokenizer):
    with pytest.raises(ApiError, match=r"messages\[0\] is of role user") as caught:
        tokens(tokenizer, ("user", [{"type": "python", "text": "1"}]))
    assert caught.value.param == "messages[0].content"


def test_settings_become_those_of_the_engine(model):
    asked = body(
        ("user", "hi"), temperature=0.5, top_p=0.9, top_k=7, seed=-1, n=3, stop=["a", "b"],
        max_completion_tokens=5, logprobs=True, top_logprobs=4,
    )  # fmt: skip
    request = prompt.engine_request(asked, [1, 2], model, CONFIG)
    assert (request.tokens, request.max_tokens, request.n) == ((1, 2), 5, 3)
    assert (request.temperature, request.top_p, request.top_k) == (0.5, 0.9, 7)
    assert (request.seed, request.stop, request.alternatives) == (2**32 - 1, ("a", "b"), 4)


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
    with pytest.raises(ApiError, match="64 tokens, and the messages take 64") as caught:
        prompt.engine_request(asked, [1] * 64, model, CONFIG)
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


def test_more_samples_than_are_allowed_are_refused(model):
    with pytest.raises(ApiError, match="n is 9; at most 8"):
        prompt.engine_request(body(("user", "hi"), n=9), [1], model, CONFIG)


def test_conversations_are_bounded():
    small = dataclasses.replace(CONFIG, messages=2, characters=10)
    prompt.check_limits(body(("user", "12345"), ("user", "12345")).messages, small)
    with pytest.raises(ApiError, match="11 characters; at most 10"):
        prompt.check_limits(body(("user", "12345"), ("user", "123456")).messages, small)
    with pytest.raises(ApiError, match="3 messages; at most 2"):
        prompt.check_limits(body(*[("user", "")] * 3).messages, small)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"1": 5}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
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
