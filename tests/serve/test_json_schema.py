"""What of a client's JSON Schema is enforced, what is refused, and how large it may be."""

import json

import jsonschema_rs
import pytest

from jaxchat.inference.grammar import GrammarError
from jaxchat.serve.json_schema import SchemaError, SchemaReader
from jaxchat.serve.response_format import schema_grammar
from jaxchat.tokenizer import train_tokenizer

pytest.importorskip("llguidance")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the name is one of the others and the rest is text "] * 9, 300)


def read(schema):
    return SchemaReader().read(schema)


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED = [
    ([], "must be a JSON object"),
    ({"type": "text"}, "type is \"text\"; it must be object, array"),
    ({"type": []}, "type is"),
    ({"uniqueItems": True}, "'uniqueItems' is not supported"),
    ({"items": {"not": {}}}, "'not' is not supported"),
    ({"if": {}, "then": {}}, "'if' is not supported"),
    ({"properties": {"a": {"contains": {}}}}, "'contains' is not supported"),
    ({"$id": "x", "items": {"$id": "y"}}, "'\\$id' is not supported"),
    ({"$ref": "https://example.org/s"}, "a reference into the schema"),
    ({"format": "iri"}, "format is \"iri\"; it must be one of date-time"),
    ({"format": 5}, "format is 5"),
    ({"anyOf": []}, "anyOf is \\[\\]"),
    ({"anyOf": {}}, "anyOf is {}"),
    ({"items": 3}, "it must be an object"),
    ({"properties": []}, "properties is \\[\\]"),
    ({"properties": {"a\nb": {}}}, "control characters"),
    ({"required": "a"}, "required is"),
    ({"required": [1]}, "required is"),
    ({"enum": []}, "enum is"),
    ({"enum": 3}, "enum is"),
    ({"const": 2**53}, "const is 9007199254740992; it must be a number below 2\\^53"),
    ({"enum": [1, {"a": [-(2**60)]}]}, "enum is -1152921504606846976"),
    ({"minimum": 1e300}, "minimum is 1e\\+300"),
    ({"maximum": 1e-12}, "maximum is 1e-12"),
    ({"minimum": float("inf")}, "minimum is Infinity"),
    ({"minimum": "1"}, "minimum is \"1\""),
    ({"minimum": True}, "minimum is true"),
    ({"multipleOf": 0}, "multipleOf is 0"),
    ({"multipleOf": 1.001}, "multipleOf is 1.001; it must be above 0, and of at most 1000 units"),
    ({"minLength": -1}, "minLength is -1"),
    ({"maxItems": 5000}, "maxItems is 5000; it must be a whole number of 0 to 4096"),
    ({"maxLength": 1.5}, "maxLength is 1.5"),
    ({"minProperties": 2}, "minProperties is 2; it must be 0 or 1"),
    ({"pattern": 3}, "pattern is 3"),
    ({"pattern": "a" * 1001}, "at most 1000 characters"),
    ({"pattern": "((a{40}){40}){40}"}, "its repetitions"),
    ({"patternProperties": {f"^x{n}": {} for n in range(9)}}, "patternProperties is"),
    ({"properties": {f"x{n}": {} for n in range(257)}}, "properties is"),
    ({"oneOf": [{"const": n} for n in range(65)]}, "oneOf is"),
    ({"enum": list(range(4001))}, "more than 4000 values"),
    ({"anyOf": [{} for _ in range(1001)]}, "more than 1000 schemas"),
    (nested(40), "more than 32 within each other"),
    (nested(200), "more than 128 levels"),
    ({"description": "x" * 70_000}, "the schema has 700"),
    ({"allOf": [{"pattern": f"x{n}"} for n in range(4)]}, "pattern, format and multipleOf occur"),
    ({"allOf": [{"multipleOf": 7}, {"multipleOf": 9}]}, "one multipleOf"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_a_refusal_names_the_keyword(schema, message):
    with pytest.raises(SchemaError, match=message):
        read(schema)


def test_annotations_are_dropped():
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "title": "T",
        "type": "object", "x-order": 3, "uniqueItems": False, "additionalProperties": False,
        "properties": {"title": {"type": "string", "default": 2**70, "examples": [1e300]}},
    }  # fmt: skip
    assert read(schema) == {
        "type": "object", "additionalProperties": False, "properties": {"title": {"type": "string"}}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"properties": {"a": {}}}, True),
        ({"properties": {"a": {}}, "required": ["a"]}, True),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"properties": {"a": {}}, "patternProperties": {}}, False),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, False),
        ({"type": "object"}, False),
    ],
)
def test_an_object_is_closed_where_nothing_is_said_of_further_properties(schema, closed):
    found = read({"items": {"properties": {"x": schema}}})["items"]["properties"]["x"]
    assert (found.get("additionalProperties") is False) == closed


def test_branches_that_are_joined_stay_open():
    one = {"properties": {"a": {}}}
    assert read({"allOf": [one]}) == {"allOf": [one]}
    assert read({"properties": {"b": {}}, "anyOf": [one]})["anyOf"] == [one]
    assert read({"anyOf": [one]}) == {"anyOf": [{**one, "additionalProperties": False}]}


@pytest.mark.parametrize(
    ("schema", "free"),
    [
        ({"properties": {"a": {"type": "string"}, "b": {"enum": ["x"]}}}, True),
        ({"type": "object"}, True),
        ({"properties": {"a": {"maxLength": 3}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"allOf": [{"properties": {"a": {}}}]}, False),
        ({"required": ["a"]}, False),
        ({"items": {"format": "date"}}, False),
    ],
)
def test_strings_are_free_where_only_their_end_matters(schema, free):
    assert schema_grammar(schema).free_strings == free


@pytest.mark.parametrize(
    ("schema", "free"),
    [
        ({"properties": {"a": {"type": "integer"}, "b": {"enum": ["x", True]}}}, True),
        ({"type": "array", "items": {"type": "number"}}, True),
        ({"items": {"maximum": 12}}, False),
        ({"items": {"multipleOf": 3}}, False),
        ({"$defs": {"x": {"enum": [1, 10, 11]}}, "items": {"$ref": "#/$defs/x"}}, False),
        ({"anyOf": [{"const": {"a": 10}}, {"type": "null"}]}, False),
        ({"enum": ["1,2"]}, False),
    ],
)
def test_numbers_are_free_where_only_their_length_matters(schema, free):
    assert schema_grammar(schema).free_numbers == free


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "pattern": "a(?=b)"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
)
def test_what_only_the_library_sees_is_refused_too(schema, tokenizer):
    with pytest.raises(GrammarError, match=r"."):
        schema_grammar(schema).compile(tokenizer)


CASES = [  # a schema; texts that are answers; texts that are none
    ({"type": "integer"}, ["0", "-5", "123"], ["1.5", '"1"', "01"]),
    ({"type": "number", "minimum": 1, "exclusiveMaximum": 2}, ["1", "1.75"], ["2", "0.9"]),
    ({"type": "integer", "multipleOf": 7}, ["0", "21"], ["22"]),
    ({"type": ["null", "boolean"]}, ["null", "true"], ["0"]),
    ({"enum": ["a", 2, None, [1, {"b": 2}]]}, ['"a"', "2", "null", '[1,{"b":2}]'], ['"b"', "3"]),
    ({"const": None}, ["null"], ["0"]),
    ({"type": "integer"}, ["9007199254740991"], ["9007199254740992", "1e3"]),
    ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2023-02-29"', '"2024-04-31"']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-29T23:59:59.5+01:00"'],
     ['"2024-02-29T23:59:60Z"', '"2024-02-29"']),
    ({"type": "string", "format": "time"}, ['"09:15:00Z"'], ['"24:00:00Z"', '"9:00:00Z"']),
    ({"type": "string", "format": "email"}, ['"ann.b@example.org"'], ['"ann"', '"a@b"']),
    ({"const": 'x"\n'}, ['"x\\"\\n"'], ['"x"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"'], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}, ['"AB1"'], ['"A1"', '"AB1x"']),
    ({"type": "string", "pattern": "b"}, ['"abc"'], ['"ac"']),
    ({"type": "string", "format": "date"}, ['"2026-11-28"'], ['"2026-13-28"']),
    ({"type": "string", "format": "ipv4"}, ['"10.0.0.1"'], ['"10.0.0.256"']),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
     ["[1]", "[1,2]"], ["[]", "[1,2,3]", '["a"]']),
    ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, ["[1]"], ["[2]", "[1,1]"]),
    ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"const": 1}},
      "required": ["b"]},
     ['{"b":1}', '{"a":null,"b":1}'], ["{}", '{"a":1,"b":1}', '{"b":1,"c":2}']),
    ({"type": "object", "patternProperties": {"^x": {"type": "null"}},
      "additionalProperties": False}, ['{"x1":null}', "{}"], ['{"y":null}', '{"x":1}']),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
     ['{"a":1}', '{"a":1,"b":2}'], ["{}", '{"a":null}']),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["1", '"a"'], ["null"]),
    ({"allOf": [{"minimum": 3}, {"maximum": 4}], "type": "integer"}, ["3", "4"], ["2", "5"]),
    ({"$defs": {"n": {"type": "object", "properties": {
        "v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
        "required": ["v", "next"]}}, "$ref": "#/$defs/n"},
     ['{"v":1,"next":null}', '{"v":1,"next":{"v":2,"next":null}}'], ['{"v":1}']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES)
def test_keywords_are_enforced(schema, right, wrong, tokenizer):
    compiled = schema_grammar(schema).compile(tokenizer)
    valid = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    end = tokenizer.special("<|assistant_end|>")
    for text in (*right, *wrong):
        ids = [*tokenizer.encode(text), end]
        taken = compiled.initial.deep_copy().validate_tokens(ids) == len(ids)
        assert taken == (text in right), text
        if text in right:
            assert valid(json.loads(text))
