"""Calls of a client's tools: the grammar by which an answer is one, and the call read from it.

A call of one function is its arguments, as JSON. Where there are several functions the answer is
`{"name":"f","arguments":{...}}`, of which a client sees the two values.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from jaxchat.inference.grammar import Grammar
from jaxchat.serve.json_schema import SchemaError, SchemaReader
from jaxchat.serve.schema import bad_request

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
OPENING = re.compile(r'\{"name":"([^"]+)","arguments":')
NO_ARGUMENTS = {"type": "object", "properties": {}}
Functions = Mapping[str, object]  # name -> schema of its arguments


def functions_to_call(tools: Sequence[Any] | None, choice: Any) -> Functions:
    """The functions one of which a `tool_choice` wants called; none: the answer may be text.

    Raises ApiError 400 for a choice or a function that there is not.
    """
    if choice in (None, "auto", "none"):
        return {}
    functions = dict(_function(tool, number) for number, tool in enumerate(tools or []))
    if not functions:
        raise bad_request("tool_choice asks for a call, and there are no tools.", "tool_choice")
    if choice == "required":
        return functions
    named = choice.get("function", choice) if isinstance(choice, dict) else {}
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str) or name not in functions:
        raise bad_request(
            f"tool_choice is {choice!r:.80}; it must be 'auto', 'none', 'required', or name one of "
            f"the functions: {', '.join(functions):.200}.",
            "tool_choice",
        )
    return {name: functions[name]}


def call_grammar(functions: Functions) -> Grammar:
    """The grammar of a call of one of the functions. Raises ApiError 400 for their schemas."""
    single = len(functions) == 1
    readers, schemas = [], []
    for number, (name, schema) in enumerate(functions.items()):
        base = "#" if single else f"#/anyOf/{number}/properties/arguments"
        readers.append(SchemaReader(base))
        try:
            arguments = readers[-1].read(NO_ARGUMENTS if schema is None else schema)
        except SchemaError as error:
            text = str(error).removesuffix(".")
            message = f"the parameters of the tool {name} are not supported: {text}."
            raise bad_request(message, "tools") from error
        schemas.append(arguments if single else _call(name, arguments))
    text = json.dumps(schemas[0] if single else {"anyOf": schemas}, ensure_ascii=False)
    strings = all(reader.free_strings for reader in readers)
    numbers = all(reader.free_numbers for reader in readers)
    return Grammar("json_schema", text, strings, numbers)


def _call(name: str, arguments: object) -> dict[str, Any]:
    properties = {"name": {"const": name}, "arguments": arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _function(tool: object, number: int) -> tuple[str, object]:
    """Name and parameters of a tool."""
    where = f"tools[{number}]"
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise bad_request(f"{where} must be an object of the type function.", where)
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise bad_request(
            f"{where}: its function needs a name of at most 64 letters, digits, '_', '-' and '.'.",
            f"{where}.function.name",
        )
    return name, function.get("parameters")


class CallStream:
    """Turns the text of an answer into the deltas of one call while it arrives.

    The arguments of all deltas, joined, are those of the call.
    """

    def __init__(self, functions: Sequence[str]) -> None:
        """`functions` are the names of those that the answer may call."""
        self._wrapped = len(functions) > 1
        self._name = "" if self._wrapped else functions[0]
        self._id = f"call_{secrets.token_hex(12)}"
        self._held, self._announced = "", False

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The deltas of more text."""
        self._held += text
        if not self._name:
            opening = OPENING.match(self._held)
            if opening is None:
                return []
            self._name, self._held = opening[1], self._held[opening.end() :]
        keep = 1 if self._wrapped else 0  # the brace that closes what is around the arguments
        ready, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return self._deltas(ready)

    def close(self, *, complete: bool) -> list[dict[str, Any]]:
        """The deltas that are left; those of an answer that was cut off may never have begun."""
        rest = "" if complete and self._wrapped else self._held
        return self._deltas(rest) if self._name else []

    def _deltas(self, arguments: str) -> list[dict[str, Any]]:
        found = []
        if not self._announced:
            self._announced = True
            function = {"name": self._name, "arguments": ""}
            found.append({"index": 0, "id": self._id, "type": "function", "function": function})
        if arguments:
            found.append({"index": 0, "function": {"arguments": arguments}})
        return found


def whole_calls(text: str, functions: Sequence[str], *, complete: bool) -> list[dict[str, Any]]:
    """The `tool_calls` of a message, from all of an answer's text."""
    stream = CallStream(functions)
    deltas = [*stream.feed(text), *stream.close(complete=complete)]
    if not deltas:
        return []
    first = {key: value for key, value in deltas[0].items() if key != "index"}
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    return [{**first, "function": {"name": first["function"]["name"], "arguments": arguments}}]
