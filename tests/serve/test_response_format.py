"""Answers in a format, asked for with the `openai` package from a real server."""

import json
import re
from typing import Literal

import openai
import pydantic
import pytest
from live_server import asking

from jaxchat.inference.grammar import Grammar
from jaxchat.serve.response_format import JSON_OBJECT, grammar_of
from jaxchat.serve.schema import ApiError, ChatRequest

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
PERSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}


class Animal(pydantic.BaseModel):
    name: str
    legs: Literal[2, 4, 6]
    friends: list[str]


def call(client, **settings):
    asked = {"model": "tiny/rl", **asking("Who are you?"), "temperature": 1.0, "seed": 3}
    return client.chat.completions.create(**{**asked, **settings})


def body(**fields):
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})


def test_a_json_object(client):
    got = call(client, response_format={"type": "json_object"}, max_tokens=40, n=4)
    for choice in got.choices:
        assert choice.finish_reason == "stop"
        assert isinstance(json.loads(choice.message.content), dict)


def test_a_json_schema_whole_and_as_a_stream(client):
    whole = call(client, response_format=PERSON_FORMAT, max_tokens=60).choices[0]
    found = json.loads(whole.message.content)
    assert list(found) == ["name", "age"]
    assert isinstance(found["age"], int)
    chunks = call(client, response_format=PERSON_FORMAT, max_tokens=60, stream=True)
    pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "".join(pieces) == whole.message.content
    assert len(pieces) > 5


def test_parse_gives_an_object_of_the_class(client):
    got = client.chat.completions.parse(
        model="tiny/rl", **asking("Who are you?"), response_format=Animal, max_tokens=80
    )
    assert isinstance(got.choices[0].message.parsed, Animal)


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "[a-c]{3}x+"},
        {"structured_outputs": {"regex": "[a-c]{3}x+"}},
        {"guided_choice": ["aabx", 'bca"\n/xx']},
        {"structured_outputs": {"choice": ["aabx", "cccx"], "disable_any_whitespace": True}},
    ],
)
def test_a_regex_and_a_choice(client, fields):
    content = call(client, extra_body=fields, max_tokens=20).choices[0].message.content
    choices = fields.get("guided_choice") or fields.get("structured_outputs", {}).get("choice")
    assert content in choices if choices else re.fullmatch("[a-c]{3}x+", content)


def test_a_text_completion_follows_a_format_too(client):
    got = client.completions.create(
        model="tiny/rl", prompt=["a person:", "another:"], max_tokens=60, temperature=1.0,
        extra_body={"response_format": PERSON_FORMAT},
    )  # fmt: skip
    for choice in got.choices:
        assert set(json.loads(choice.text)) == {"name", "age"}


def test_a_response_follows_a_format_too(client):
    got = client.responses.create(
        model="tiny/rl", input="Who?", max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "person", "schema": PERSON}},
    )  # fmt: skip
    assert set(json.loads(got.output_text)) == {"name", "age"}
    assert got.text.format.type == "json_schema"
    parsed = client.responses.parse(
        model="tiny/rl", input="Who?", text_format=Animal, max_output_tokens=80
    )
    assert isinstance(parsed.output_parsed, Animal)


def test_logprobs_are_the_models_and_forced_tokens_have_none(client):
    got = call(client, response_format=PERSON_FORMAT, logprobs=True, top_logprobs=2, max_tokens=60)
    entries = got.choices[0].logprobs.content
    assert {entry.jaxchat["sampled"] for entry in entries} == {True, False}
    for entry in entries:
        assert (entry.logprob < 0) == entry.jaxchat["sampled"] == bool(entry.top_logprobs)


def test_a_budget_that_is_too_small_ends_with_length(client):
    choice = call(client, response_format=PERSON_FORMAT, max_tokens=5).choices[0]
    assert choice.finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format .*text, json_object and"),
        ({"response_format": "json"}, "response_format .*its type must be"),
        ({"response_format": {"type": "json_schema"}}, "with a schema"),
        ({"guided_json": "{"}, "guided_json .*not JSON"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"guided_json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf"),
        ({"guided_regex": "["}, "guided_regex .*regex"),
        ({"guided_choice": []}, "guided_choice .*1 to 1000 texts"),
        ({"guided_choice": [""]}, "none of them empty"),
        ({"guided_grammar": "root ::= 'x'"}, "guided_grammar .*only a JSON schema"),
        ({"structured_outputs": {"grammar": "x"}}, "'grammar' is none of json"),
        ({"structured_outputs": {"json": PERSON, "regex": "x"}}, "exclude each other"),
        ({"structured_outputs": 1}, "must be an object"),
        ({"guided_regex": "x", "response_format": {"type": "json_object"}}, "give one"),
    ],
)
def test_what_is_not_supported_is_a_400_that_says_so(client, fields, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        call(client, extra_body=fields)
    assert caught.value.param in fields


def test_a_text_is_free():
    for fields in ({}, {"response_format": {"type": "text"}}, {"structured_outputs": {}}):
        assert grammar_of(body(**fields)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"guided_json": {"type": "object"}},
        {"guided_json": '{"type": "object"}'},
        {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {"response_format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    ],
)
def test_ways_to_say_the_same(fields):
    assert grammar_of(body(**fields)) == (next(iter(fields)), JSON_OBJECT)


def test_a_choice_is_kept_as_it_is():
    assert grammar_of(body(guided_choice=["é", "b"])) == (
        "guided_choice", Grammar("choice", '["\\u00e9", "b"]')
    )  # fmt: skip
    with pytest.raises(ApiError):
        grammar_of(body(guided_choice=["x" * 70_000]))
