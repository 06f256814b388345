"""Calls of a client's tools that it requires, from a real server."""

import json

import openai
import pytest
from live_server import asking

from jaxchat.serve.tool_calls import CallStream, call_grammar, whole_calls

pytest.importorskip("llguidance")

ARGUMENTS = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"]},
    "look": {"$defs": {"where": {"enum": ["up", "down"]}}, "type": "object",
             "properties": {"way": {"$ref": "#/$defs/where"}}, "required": ["way"]},
    "stop": None,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in ARGUMENTS.items()
]
KEYS = {"add": {"a", "b"}, "look": {"way"}, "stop": set()}


def call(client, tools=TOOLS, **settings):
    asked = {"model": "tiny/rl", **asking("Who are you?"), "temperature": 1.0, "max_tokens": 80}
    return client.chat.completions.create(**{**asked, "tools": tools, "seed": 1, **settings})


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_named_function_is_called(client, name):
    (choice,) = call(client, tool_choice=named(name)).choices
    (got,) = choice.message.tool_calls
    assert (got.type, got.function.name) == ("function", name)
    assert got.id.startswith("call_")
    assert set(json.loads(got.function.arguments)) == KEYS[name]
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


def test_one_of_several_is_called_where_a_call_is_required(client):
    got = call(client, tool_choice="required", n=8)
    for choice in got.choices:
        (made,) = choice.message.tool_calls
        assert set(json.loads(made.function.arguments)) == KEYS[made.function.name]
        assert choice.finish_reason == "tool_calls"
    assert len({choice.message.tool_calls[0].id for choice in got.choices}) == 8


@pytest.mark.parametrize("choice", ["required", named("add")])
def test_a_stream_adds_up_to_the_call(client, choice):
    whole = call(client, tool_choice=choice).choices[0].message.tool_calls[0].function
    chunks = list(call(client, tool_choice=choice, stream=True))
    assert chunks[0].choices[0].delta.content is None
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    first, *others = [d for c in chunks for d in c.choices[0].delta.tool_calls or ()]
    assert (first.index, first.type, first.function.name) == (0, "function", whole.name)
    assert first.id.startswith("call_")
    assert all(other.id is None and other.index == 0 for other in others)
    assert "".join(d.function.arguments for d in (first, *others)) == whole.arguments
    with client.chat.completions.stream(
        model="tiny/rl", **asking("x"), tools=TOOLS, tool_choice=choice, max_tokens=80
    ) as stream:
        made = stream.get_final_completion().choices[0].message.tool_calls
    assert set(json.loads(made[0].function.arguments)) == KEYS[made[0].function.name]


def test_a_call_that_is_cut_off_ends_with_length(client):
    (choice,) = call(client, tool_choice="required", max_tokens=3).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    (choice,) = call(client, tool_choice=named("add"), max_tokens=5).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments.startswith('{"a":')


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required", "tools": []}, "there are no tools"),
        ({"tool_choice": "always"}, "'required', or name one of the functions: add, look"),
        ({"tool_choice": named("subtract")}, "name one of the functions: add, look, stop"),
        ({"tool_choice": "required", "tools": [{"type": "retrieval"}]}, r"tools\[0\] must be"),
        ({"tool_choice": "required", "tools": [{"function": {"name": "a b"}}]}, "needs a name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "for a call"),
        (
            {"tool_choice": "required",
             "tools": [{"function": {"name": "a", "parameters": {"uniqueItems": True}}}]},
            "the tool a are not supported: the keyword 'uniqueItems'",
        ),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_made_is_a_400(client, fields, message):
    with pytest.raises(openai.BadRequestError, match=message):
        call(client, **fields)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_wrapped_call_in_pieces(size):
    text = '{"name":"add","arguments":{"a":"}}"}}'
    stream, deltas = CallStream(["add", "look"]), []
    for start in range(0, len(text), size):
        deltas += stream.feed(text[start : start + size])
    deltas += stream.close(complete=True)
    assert deltas[0]["function"] == {"name": "add", "arguments": ""}
    assert "".join(d["function"]["arguments"] for d in deltas) == '{"a":"}}"}'


def test_a_call_that_never_began():
    assert whole_calls('{"na', ["add", "look"], complete=False) == []
    (cut,) = whole_calls('{"name":"add","arguments":{"a":1}', ["add", "look"], complete=False)
    assert cut["function"]["arguments"] == '{"a":1}'


def test_references_stay_within_their_tool():
    text = call_grammar(ARGUMENTS).text
    assert '"$ref": "#/anyOf/1/properties/arguments/$defs/where"' in text
    assert '"$ref": "#/$defs/where"' in call_grammar({"look": ARGUMENTS["look"]}).text
