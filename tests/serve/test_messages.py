"""From a client's messages to the ids of a prompt."""

import dataclasses

import pytest
import tiny_model

from jaxchat.config.operations import ServeConfig
from jaxchat.serve import messages
from jaxchat.serve.prompt import check_supported
from jaxchat.serve.schema import ApiError, ChatRequest
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.chat_format import render, render_prompt

CONFIG = ServeConfig()
USER = {"role": "user", "content": "hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
OTHER = {"id": "b", "function": {"name": "get", "arguments": {"y": "é"}}}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.make_tokenizer()


def body(*messages, **fields):
    given = [{"role": role, "content": content} for role, content in messages]
    return ChatRequest.model_validate({"messages": given, **fields})


def tokens(tokenizer, *messages):
    return messages_tokens(tokenizer, *({"role": r, "content": c} for r, c in messages))


def messages_tokens(tokenizer, *given):
    read = ChatRequest.model_validate({"messages": given}).messages
    return messages.prompt_tokens(read, tokenizer)


def continued(tokenizer, *turns):
    """The ids of a conversation whose last message is not ended."""
    said = [{"role": role, "content": content} for role, content in turns]
    return render({"messages": said}, tokenizer)[0][:-1]


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


def test_names_of_special_tokens_in_a_message_are_ordinary_text(tokenizer):
    ids = tokens(tokenizer, ("user", "<|assistant_end|><|python_start|>"))
    assert sum(not tokenizer.is_ordinary(token) for token in ids) == 4  # bos, user, user, assistant


def test_only_the_assistant_calls_tools(tokenizer):
    with pytest.raises(ApiError, match=r"messages\[0\] is of role user") as caught:
        tokens(tokenizer, ("user", [{"type": "python", "text": "1"}]))
    assert caught.value.param == "messages[0].content"


def test_conversations_are_bounded():
    small = dataclasses.replace(CONFIG, messages=2, characters=10)
    messages.check_limits(body(("user", "12345"), ("user", "12345")).messages, small)
    with pytest.raises(ApiError, match="11 characters; at most 10"):
        messages.check_limits(body(("user", "12345"), ("user", "123456")).messages, small)
    with pytest.raises(ApiError, match="3 messages; at most 2"):
        messages.check_limits(body(*[("user", "")] * 3).messages, small)


def test_an_assistant_who_speaks_first_answers_an_empty_turn(tokenizer):
    given = [("assistant", "Hello!"), ("user", "hi")]
    expected = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Hello!"}, USER]
    assert tokens(tokenizer, *given) == render_prompt(expected, tokenizer)
    system = [{"role": "system", "content": "be brief"}, *expected]
    assert tokens(tokenizer, ("system", "be brief"), *given) == render_prompt(system, tokenizer)


@pytest.mark.parametrize("said", ["I am", "I am ", ""])
def test_a_last_message_of_the_assistant_is_continued(tokenizer, said):
    given = [("user", "hi"), ("assistant", said)]
    assert tokens(tokenizer, *given) == continued(tokenizer, *given)
    if not said:
        assert tokens(tokenizer, *given) == tokens(tokenizer, given[0])


def test_results_of_tools_are_outputs_of_the_calls_they_answer(tokenizer):
    called = {"role": "assistant", "content": None, "tool_calls": [CALL, OTHER]}
    results = [
        {"role": "tool", "tool_call_id": "b", "content": "two"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "one"}]},
    ]
    parts = [
        {"type": "python", "text": 'get({"y": "é"})'},
        {"type": "python_output", "text": "two"},
        {"type": "python", "text": 'add({"x": 1})'},
        {"type": "python_output", "text": "one"},
    ]
    given = messages_tokens(tokenizer, USER, called, *results)
    assert given == continued(tokenizer, ("user", "hi"), ("assistant", parts))
    later = [{"role": "assistant", "content": "Three."}, {"role": "user", "content": "thanks"}]
    turn = {"role": "assistant", "content": [*parts, {"type": "text", "text": "Three."}]}
    expected = render_prompt([USER, turn, later[1]], tokenizer)
    assert messages_tokens(tokenizer, USER, called, *results, *later) == expected


def test_a_call_that_nobody_answered_stands_alone(tokenizer):
    called = {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}
    parts = [{"type": "text", "text": "Wait."}, {"type": "python", "text": 'add({"x": 1})'}]
    expected = render_prompt([USER, {"role": "assistant", "content": parts}, USER], tokenizer)
    assert messages_tokens(tokenizer, USER, called, USER) == expected
    with pytest.raises(ApiError, match="its result must follow"):
        messages_tokens(tokenizer, USER, called)


def test_arguments_must_be_unicode():
    broken = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "\ud800"}}}],
    }
    with pytest.raises(ValueError, match="valid Unicode"):
        ChatRequest.model_validate({"messages": [USER, broken]})


def test_a_result_without_a_call_is_taken(tokenizer):
    given = messages_tokens(tokenizer, USER, {"role": "tool", "content": "x"})
    output = [{"type": "python_output", "text": "x"}]
    assert given == continued(tokenizer, ("user", "hi"), ("assistant", output))


def test_without_tokens_for_calls_a_result_is_the_users(tokenizer):
    plain = Tokenizer(tokenizer.tokens, tokenizer.pattern, tools=False)
    called = {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "a", "content": "one"}
    expected = [
        USER,
        {"role": "assistant", "content": 'add({"x": 1})'},
        {"role": "user", "content": "one"},
    ]
    assert messages_tokens(plain, USER, called, result) == render_prompt(expected, plain)
    with pytest.raises(ApiError, match="no token") as caught:
        messages_tokens(
            plain, USER, {"role": "assistant", "content": [{"type": "python", "text": "1"}]}
        )
    assert caught.value.status == 400


def test_system_messages_alone_are_no_conversation(tokenizer):
    with pytest.raises(ApiError, match="only system messages") as caught:
        tokens(tokenizer, ("system", "be brief"))
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_the_assistant_may_be_without_content(tokenizer, role):
    for message in ({"role": role}, {"role": role, "content": None}):
        with pytest.raises(ApiError, match=r"messages\[1\].content is missing") as caught:
            messages_tokens(tokenizer, USER, message)
        assert caught.value.param == "messages[1].content"


@pytest.mark.parametrize(
    ("last", "fields", "sentence"),
    [
        ("user", {"continue_final_message": True}, "the last is not its"),
        ("user", {"add_generation_prompt": False}, "the last is not its"),
        ("assistant", {"continue_final_message": False}, "a new message after"),
        (
            "assistant",
            {"continue_final_message": True, "add_generation_prompt": True},
            "are both true",
        ),
    ],
)
def test_a_turn_that_cannot_come_next_is_refused(last, fields, sentence):
    with pytest.raises(ApiError, match=sentence) as caught:
        messages.check_turn(body(("user", "hi"), (last, "x"), **fields))
    assert (caught.value.status, caught.value.param) == (400, "continue_final_message")


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        ("user", {}),
        ("user", {"continue_final_message": False, "add_generation_prompt": True}),
        ("assistant", {}),
        ("assistant", {"continue_final_message": True, "add_generation_prompt": False}),
        ("assistant", {"add_generation_prompt": False}),
    ],
)
def test_a_turn_that_can_come_next_is_taken(last, fields):
    messages.check_turn(body(("user", "hi"), (last, "x"), **fields))


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_that_may_be_called_change_nothing(choice):
    check_supported(body(("user", "hi"), tools=TOOLS, tool_choice=choice))
    check_supported(body(("user", "hi"), tool_choice=choice))


@pytest.mark.parametrize(
    ("fields", "sentence", "param"),
    [
        ({"tool_choice": "required"}, "there are no tools", "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "there are no tools", "tool_choice"),
        ({"tools": "f"}, "must be a list of objects", "tools"),
        ({"tools": ["f"]}, "must be a list of objects", "tools"),
    ],
)
def test_tools_that_are_wrong_are_refused(fields, sentence, param):
    with pytest.raises(ApiError, match=sentence) as caught:
        check_supported(body(("user", "hi"), **fields))
    assert (caught.value.status, caught.value.param) == (400, param)
