"""JSON Schemas that clients send: what is enforced, what says nothing of an answer, and bounds.

A keyword is enforced, or an annotation (dropped before the library sees it), or refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

CHARACTERS = 65_536  # of a schema as JSON
DEPTH = 32  # schemas in schemas, and values in values of `enum` and `const`
SCHEMAS = 1_000
NAMES = 256  # properties of one object
PATTERNS = 8  # `patternProperties` of one object: each two are compared
BRANCHES = 64  # of a oneOf: each two are compared
MEETING = 3  # patterns, formats and, twice, multipleOf, where schemas are joined: they intersect
VALUES = 4_000  # of all `enum`s
REPEATS = 4_096  # lengths and counts
PATTERN = 1_000  # characters of a pattern, and of its repetitions multiplied
EXACT = 2**53  # from here on a float does not hold every integer
SMALLEST = 1e-9  # but 0
MULTIPLES = 1_000  # of the largest multipleOf, in units of its last decimal place

SCHEMA_OR_BOOL = ("items", "additionalProperties")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
FORMATS = (
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
    "uri",
)
SIMPLE = ("type", "enum", "const", "required", "pattern", "format", "$ref")
_DATE = (
    "([0-9]{4}-(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|[0-9]{4}-(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|[0-9]{4}-02-(0[1-9]|1[0-9]|2[0-8])"
    "|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_WORD = "[A-Za-z0-9_+-]{1,20}"
_EMAIL = f"{_WORD}([.]{_WORD}){{0,2}}@[A-Za-z0-9]{{1,30}}([.][A-Za-z0-9]{{2,30}}){{1,3}}"
EXACT_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": f"^{_EMAIL}$",
}
ENFORCED = frozenset((*SIMPLE, *SCHEMA_OR_BOOL, *LISTS, *MAPS, *COUNTS, *NUMBERS))
ANNOTATIONS = frozenset(
    "title description default example examples deprecated readOnly writeOnly $comment $schema "
    "discriminator".split()
)
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
SHAPING = frozenset(("pattern", "format", "minLength", "maxLength", "patternProperties"))
COSTLY = {"pattern": 1, "format": 1, "multipleOf": 2}
BRANCHING = frozenset(("anyOf", "oneOf", "allOf", "$ref"))
REPETITION = re.compile(r"\{(\d*),?(\d*)\}")
POINTER = re.compile(r"#(/.*)?")


class SchemaError(ValueError):
    """A schema that is not supported; the message names the keyword."""


class SchemaReader:
    """Reads one schema.

    Attributes:
        free_strings: whether no string but those of `enum` and `const` is restricted (see
            `inference.grammar.Grammar`); after `read`.
        free_numbers: whether no number is, but to those that are exact; after `read`.
    """

    def __init__(self, base: str = "#") -> None:
        """`base` is where the schema will stand in another one: its references are to there."""
        self.free_strings = self.free_numbers = True
        self._base, self._schemas, self._values = base, 0, 0
        self._joined, self._meeting = False, 0

    def read(self, schema: object) -> dict[str, Any]:
        """The schema without annotations, closed where nothing is said of further properties.

        Raises SchemaError.
        """
        if not isinstance(schema, dict):
            raise SchemaError("the schema must be a JSON object.")
        _check_depth(schema, 4 * DEPTH)
        size = len(json.dumps(schema, ensure_ascii=False))
        if size > CHARACTERS:
            raise SchemaError(
                f"the schema has {size} characters; at most {CHARACTERS} are allowed."
            )
        found = self._schema({key: schema[key] for key in schema if key != "$id"}, 0, closes=True)
        if self._joined and self._meeting > MEETING:
            raise SchemaError(
                "pattern, format and multipleOf occur too often in a schema with allOf, or with "
                f"keywords beside anyOf, oneOf or $ref: at most {MEETING} are allowed there, and "
                "one multipleOf."
            )
        return found

    def _sub(self, schema: object, depth: int, *, closes: bool = True) -> Any:
        return (
            schema if isinstance(schema, bool) else self._schema(schema, depth + 1, closes=closes)
        )

    def _schema(self, schema: object, depth: int, *, closes: bool) -> dict[str, Any]:
        if not isinstance(schema, dict):
            raise SchemaError(f"a schema in it is {_short(schema)}; it must be an object.")
        self._schemas += 1
        if depth > DEPTH or self._schemas > SCHEMAS:
            raise SchemaError(
                f"there are more than {SCHEMAS} schemas in the schema, or more than {DEPTH} within "
                "each other."
            )
        closes = closes and BRANCHING.isdisjoint(schema)
        beside = set(schema) - ANNOTATIONS - {"$defs", "definitions"}
        self._joined |= "allOf" in schema or (not BRANCHING.isdisjoint(schema) and len(beside) > 1)
        self._meeting += sum(COSTLY.get(key, 0) for key in beside)
        found = {
            key: self._value(key, value, depth, alone="properties" not in schema)
            for key, value in schema.items()
            if key not in ANNOTATIONS and not key.startswith("x-") and (key, value) not in _EMPTY
        }
        found = _exact(found)
        return self._closed(found) if closes else self._opened(found)

    def _closed(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Without further properties, where it names some and says nothing of others."""
        names = schema.get("properties")
        others = {"additionalProperties", "patternProperties"} & set(schema)
        if names is not None and not others and set(schema.get("required", ())) <= set(names):
            return {**schema, "additionalProperties": False}
        return self._opened(schema)

    def _opened(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Further names depend on those that are declared, and so do their characters."""
        named = not {"properties", "required"}.isdisjoint(schema)
        if named and schema.get("additionalProperties") is not False:
            self.free_strings = False
        return schema

    def _value(self, key: str, value: Any, depth: int, *, alone: bool) -> Any:
        """The value of a keyword."""
        if key not in ENFORCED:
            raise SchemaError(f"the keyword {key!r:.80} is not supported.")
        if key in SHAPING:
            self.free_strings = False
        named = key in ("enum", "const") and re.search("[0-9]", json.dumps(value))
        if key in NUMBERS or named:
            self.free_numbers = False
        if key in SCHEMA_OR_BOOL:
            return self._sub(value, depth)
        if key in LISTS:
            _require(isinstance(value, list) and value, key, value, "a list of schemas")
            _require(key != "oneOf" or len(value) <= BRANCHES, key, value, f"at most {BRANCHES}")
            in_place = key != "prefixItems"
            closes = not in_place or (alone and key != "allOf")
            return [self._sub(each, depth, closes=closes) for each in value]
        if key in MAPS:
            most = PATTERNS if key == "patternProperties" else NAMES
            held = isinstance(value, dict) and len(value) <= most
            _require(held, key, value, f"an object of at most {most} schemas")
            for name in value:
                _check_name(name, key)
            return {name: self._sub(each, depth) for name, each in value.items()}
        if key in ("enum", "const"):
            return self._constants(key, value)
        if key == "$ref":
            known = isinstance(value, str) and POINTER.fullmatch(value)
            _require(known, key, value, "a reference into the schema, such as #/$defs/item")
            return self._base + value[1:]
        _PLAIN[key](key, value)
        return value

    def _constants(self, key: str, value: Any) -> Any:
        values = value if key == "enum" else [value]
        _require(isinstance(values, list) and values, key, value, "a list of values")
        self._values += len(values)
        if self._values > VALUES:
            raise SchemaError(f"enum: there are more than {VALUES} values.")
        _check_numbers(values, key)
        return value


def _exact(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema where the library would be too generous.

    Some formats as patterns; numbers such as every reader of JSON holds exactly, and without an
    exponent, unless they are bounded anyhow.
    """
    if "pattern" not in schema and schema.get("format") in EXACT_FORMATS:
        schema = {**schema, "pattern": EXACT_FORMATS[schema["format"]]}
        del schema["format"]
    kinds = schema.get("type", ())
    numeric = {"integer", "number"} & set([kinds] if isinstance(kinds, str) else kinds)
    if numeric and not {"enum", "const", "multipleOf"} & set(schema):
        low = {} if {"minimum", "exclusiveMinimum"} & set(schema) else {"minimum": 1 - EXACT}
        high = {} if {"maximum", "exclusiveMaximum"} & set(schema) else {"maximum": EXACT - 1}
        schema = {**schema, **low, **high}
    return schema


def _check_depth(value: object, left: int) -> None:
    """Before anything looks into it by recursion."""
    level: list[Any] = [value]
    while level:
        if left < 0:
            raise SchemaError(f"the schema has more than {4 * DEPTH} levels.")
        inner = [x.values() if isinstance(x, dict) else x for x in level]
        level = [y for x in inner for y in x if isinstance(y, dict | list)]
        left -= 1


def _check_numbers(value: object, key: str) -> None:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each, key)
        for name in value if isinstance(value, dict) else ():
            _check_name(name, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(key, value)


def _check_number(key: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    held = number and math.isfinite(value) and abs(value) < EXACT
    _require(held and (value == 0 or abs(value) >= SMALLEST), key, value,
             f"a number below 2^53 and, but for 0, of {SMALLEST:g} or more")  # fmt: skip


def _check_multiple(key: str, value: Any) -> None:
    _check_number(key, value)
    _, _, decimals = f"{value:.9f}".rstrip("0").partition(".")
    units = round(value * 10 ** len(decimals))
    _require(0 < units <= MULTIPLES, key, value, f"above 0, and of at most {MULTIPLES} units")


def _check_count(key: str, value: Any) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and 0 <= value <= REPEATS, key, value, f"a whole number of 0 to {REPEATS}")
    # a name that occurs twice would be counted twice
    _require(key != "minProperties" or value < 2, key, value, "0 or 1")


def _check_type(key: str, value: Any) -> None:
    kinds = value if isinstance(value, list) else [value]
    _require(kinds and all(kind in TYPES for kind in kinds), key, value, ", ".join(TYPES))


def _check_format(key: str, value: Any) -> None:
    _require(value in FORMATS, key, value, "one of " + ", ".join(FORMATS))


def _check_required(key: str, value: Any) -> None:
    texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    _require(texts, key, value, "a list of names")
    for name in value:
        _check_name(name, key)


def _check_name(name: str, key: str) -> None:
    """Names are compared as written, and control characters can be written in two ways."""
    _require(min(name, default=" ") >= " ", key, name, "names without control characters")


def check_pattern(key: str, value: Any) -> None:
    """Raises SchemaError for a regular expression that is too large."""
    _require(isinstance(value, str), key, value, "a regular expression")
    repeats = math.prod(max(1, *(int(n[:9] or 0) for n in m)) for m in REPETITION.findall(value))
    if len(value) > PATTERN or repeats > PATTERN:
        raise SchemaError(
            f"{key}: a regular expression has at most {PATTERN} characters, and its repetitions "
            f"({{n,m}}) multiplied are at most {PATTERN}."
        )


def _require(holds: object, key: str, value: object, expected: str) -> None:
    if not holds:
        raise SchemaError(f"{key} is {_short(value)}; it must be {expected}.")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


_EMPTY = (("uniqueItems", False), ("nullable", False))  # which say nothing
_PLAIN: Mapping[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(COUNTS, _check_count),
    **dict.fromkeys(NUMBERS, _check_number),
    "multipleOf": _check_multiple,
    "type": _check_type,
    "format": _check_format,
    "required": _check_required,
    "pattern": check_pattern,
}
