"""What a request says its answer must be: a grammar, from the fields of OpenAI's API and of vLLM.

`response_format` is OpenAI's; `structured_outputs`, and before it the fields `guided_...`, vLLM's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from jaxchat.inference.grammar import CompiledGrammar, Grammar, GrammarError
from jaxchat.serve.json_schema import SchemaError, SchemaReader, check_pattern
from jaxchat.serve.responses import ResponsesRequest
from jaxchat.serve.schema import ApiError, GenerationRequest, bad_request
from jaxchat.serve.tool_calls import Functions, call_grammar
from jaxchat.tokenizer.bpe import Tokenizer

CHOICES = 1_000
CHARACTERS = 65_536  # of all choices
JSON_OBJECT = Grammar("json_schema", '{"type": "object"}', free_strings=True, free_numbers=True)
FORMATS = "text, json_object and json_schema"
NAMES = ("json", "regex", "choice")  # of vLLM's ways that are supported
# Of structured_outputs: how vLLM gets there, without effect on what is right; and what is refused.
WITHOUT_EFFECT = ("disable_fallback", "disable_any_whitespace", "disable_additional_properties")


def grammar_of(body: GenerationRequest) -> tuple[str, Grammar] | None:
    """The grammar that the answer must follow, and the field that has it; None: it is free.

    Raises ApiError 400 for one that is not supported, naming what, and for more than one.
    """
    found = [
        (name, grammar)
        for name, read in _FIELDS.items()
        if (value := _given(body, name)) is not None
        and (grammar := _checked(name, read, value)) is not None
    ]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise bad_request(f"{names} both say what the answer must be; give one.", found[1][0])
    return found[0] if found else None


def answer_grammar(
    body: GenerationRequest, functions: Functions, tokenizer: Tokenizer
) -> CompiledGrammar | None:
    """The grammar of an answer, which may have to be a call of a function, compiled.

    Raises ApiError 400 for one that is not supported.
    """
    found = grammar_of(body)
    if functions and found is not None:
        raise bad_request(f"tool_choice asks for a call, and {found[0]} for a text.", found[0])
    param, grammar = ("tools", call_grammar(functions)) if functions else found or ("", None)
    try:
        return None if grammar is None else grammar.compile(tokenizer)
    except GrammarError as error:
        raise unsupported(error, param) from error


def unsupported(error: SchemaError | GrammarError, param: str) -> ApiError:
    """The error for a grammar that cannot be read or compiled."""
    text = str(error).removesuffix(".")
    return bad_request(f"{param} is not supported: {text[:500]}.", param)


def schema_grammar(schema: object) -> Grammar:
    """The JSON documents of a schema. Raises SchemaError."""
    reader = SchemaReader()
    text = json.dumps(reader.read(schema), ensure_ascii=False)
    return Grammar("json_schema", text, reader.free_strings, reader.free_numbers)


def _given(body: GenerationRequest, name: str) -> Any:
    if name == "text.format":
        return body.format if isinstance(body, ResponsesRequest) else None
    return getattr(body, name)


def _checked(name: str, read: Callable[[Any], Grammar | None], value: object) -> Grammar | None:
    try:
        return read(value)
    except SchemaError as error:
        raise unsupported(error, name) from error


def _response_format(value: Any) -> Grammar | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise SchemaError(f"its type must be one of {FORMATS}")
    holder = value.get("json_schema", value)  # /v1/responses has name and schema beside the type
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if schema is None and kind == "json_schema":
        raise SchemaError("json_schema must be an object with a schema")
    return JSON_OBJECT if schema is None else schema_grammar(schema)


def _json(value: Any) -> Grammar:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise SchemaError("the schema is a text that is not JSON") from error
    return schema_grammar(value)


def _regex(value: Any) -> Grammar:
    check_pattern("the value", value)
    return Grammar("regex", value)


def _choice(value: Any) -> Grammar:
    texts = isinstance(value, list) and all(isinstance(text, str) and text for text in value)
    if not texts or not 0 < len(value) <= CHOICES or sum(map(len, value)) > CHARACTERS:
        raise SchemaError(
            f"it must be a list of 1 to {CHOICES} texts, none of them empty, of at most "
            f"{CHARACTERS} characters together"
        )
    return Grammar("choice", json.dumps(value))


def _structured(value: Any) -> Grammar | None:
    if not isinstance(value, dict):
        raise SchemaError("it must be an object")
    given = {key: each for key, each in value.items() if each not in (None, False)}
    if given.pop("json_object", None) is True and not set(given) & set(NAMES):
        return JSON_OBJECT
    for key in given:
        if key not in (*NAMES, *WITHOUT_EFFECT):
            raise SchemaError(f"{key[:80]!r} is none of {', '.join((*NAMES, 'json_object'))}")
    ways = [key for key in NAMES if key in given]
    if len(ways) > 1:
        raise SchemaError(f"{' and '.join(ways)} exclude each other")
    return _WAYS[ways[0]](given[ways[0]]) if ways else None


def _refused(value: Any) -> None:
    raise SchemaError("only a JSON schema, a regular expression or a choice can be followed")


_WAYS: Mapping[str, Callable[[Any], Grammar]] = {"json": _json, "regex": _regex, "choice": _choice}
_FIELDS: Mapping[str, Callable[[Any], Grammar | None]] = {
    "response_format": _response_format,
    "text.format": _response_format,
    "structured_outputs": _structured,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _refused,
    "guided_whitespace_pattern": _refused,
}
