"""Calls the functions of one sandboxed program from another: tests run apart from what they test.

The program under test never shares an interpreter with its tests: it is asked over a pipe and
answers with plain data, so it can neither leave early with exit code 0, nor replace what the
tests use, nor return an object that equals everything. Messages are lines of JSON:

    program  ["names", name, ...]          the functions it has, once
    tests    ["call", name, arguments, keywords]
    program  ["return", value, arguments]  the arguments as the call has left them
    program  ["raise", type, text]
"""

from __future__ import annotations

import builtins
import json
import os
import sys

TYPE_CHECKING = False  # typing's, without the milliseconds that importing it costs each program
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

SERVE = "serve"
TEST = "test:"  # and the name of the function to check
MOST_ITEMS = 1_000_000  # of an iterator that is sent


class Opaque:
    """What is no plain data, on the other side: equal to nothing but itself."""


class Ended(RuntimeError):
    """The program ended, or answered nonsense, where an answer was due."""


def take_part(
    role: str, read: int, write: int, namespace: dict[str, Any], run: Callable[[], None]
) -> None:
    """Runs the program and then answers calls (SERVE), or the tests and then `check` (TEST)."""
    sys.set_int_max_str_digits(0)
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        if role == SERVE:
            run()
            _serve(namespace, source, sink)
        else:
            for name in _receive(source, "names"):
                if _is_function_name(name):
                    namespace[name] = _Remote(name, source, sink)
            run()
            namespace["check"](namespace[role.removeprefix(TEST)])


def _is_function_name(name: Any) -> bool:
    """Whether the tests may know a function of the program by this name."""
    usual = isinstance(name, str) and name.isidentifier() and not name.startswith("__")
    return usual and not hasattr(builtins, name)


def _serve(namespace: dict[str, Any], source: BinaryIO, sink: BinaryIO) -> None:
    names = [name for name, value in namespace.items() if callable(value)]
    _send(sink, ["names", *names])
    while line := source.readline():
        _, name, arguments, keywords = json.loads(line)
        arguments, keywords = decode(arguments), decode(keywords)
        try:
            value = namespace[name](*arguments, **keywords)
            answer = ["return", encode(value), encode(arguments)]
        except Exception as error:
            answer = ["raise", type(error).__name__, str(error)[:1000]]
        _send(sink, answer)
    # The tests are over; what it has started or registered has no say any more.
    sys.stdout.flush()
    os._exit(0)


def _send(sink: BinaryIO, message: list[Any]) -> None:
    sink.write(json.dumps(message).encode() + b"\n")
    sink.flush()


def _receive(source: BinaryIO, *kinds: str) -> list[Any]:
    """What follows the kind in the next message; with more than one kind, the kind as well."""
    line = source.readline()
    if not line:
        raise Ended("the program ended before its tests did")
    message = json.loads(line)
    if not isinstance(message, list) or not message or message[0] not in kinds:
        raise Ended("the program did not answer as it should")
    return message if len(kinds) > 1 else message[1:]


class _Remote:
    """A function of the program, for its tests."""

    def __init__(self, name: str, source: BinaryIO, sink: BinaryIO) -> None:
        self.__name__, self._source, self._sink = name, source, sink

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        call = ["call", self.__name__, encode(list(arguments)), encode(keywords)]
        _send(self._sink, call)
        kind, first, second = _receive(self._source, "return", "raise")
        if kind == "raise":
            raise _error(str(first), str(second))
        value = decode(first)
        for mine, theirs in zip(arguments, decode(second), strict=True):
            _change(mine, theirs)
        return value


def _error(name: str, text: str) -> Exception:
    """The built-in exception of that name; a RuntimeError if there is none.

    And for StopIteration, which would end a loop of the tests as if all were well.
    """
    kind = None if name.startswith("Stop") else getattr(builtins, name, None)
    try:
        error = kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else None
    except TypeError:  # UnicodeDecodeError takes five arguments
        error = None
    return error or RuntimeError(f"{name}: {text}")


def _change(mine: Any, theirs: Any) -> None:
    """What a call did to an argument, done to the caller's."""
    if type(mine) is type(theirs) and mine != theirs:
        if isinstance(mine, list):
            mine[:] = theirs
        elif isinstance(mine, dict | set):
            mine.clear()
            mine.update(theirs)


_GROUPS: dict[str, Any] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset,
}  # fmt: skip


def encode(value: Any) -> Any:
    """Plain data as JSON: numbers, text and None as they are, the rest as [kind, parts ...].

    Subclasses become what they derive from, which is what they compare as; an iterator its items.
    """
    if value is None or isinstance(value, bool | str):
        return value
    for plain in (int, float):
        if isinstance(value, plain):
            return plain(value)
    for kind, group in _GROUPS.items():
        if isinstance(value, group):
            return [kind, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *([encode(k), encode(v)] for k, v in value.items())]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if hasattr(value, "__next__"):
        items = [encode(item) for item, _ in zip(value, range(MOST_ITEMS), strict=False)]
        return ["iterator", *items]
    if type(value).__name__ in ("Decimal", "Fraction"):
        return [type(value).__name__, str(value)]
    return ["other"]


def decode(value: Any) -> Any:
    """The value that `encode` was given, or what stands for it. Raises Ended for anything else."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise Ended("the program did not answer as it should")
        return value
    kind, *parts = value
    if isinstance(kind, str) and kind in _GROUPS:
        return _GROUPS[kind](map(decode, parts))
    if kind == "dict":
        return {decode(k): decode(v) for k, v in parts}
    if kind == "iterator":
        return iter([decode(part) for part in parts])
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind in ("complex", "range"):
        return (complex if kind == "complex" else range)(*parts)
    if kind == "Decimal":
        from decimal import Decimal

        return Decimal(parts[0])
    if kind == "Fraction":
        from fractions import Fraction

        return Fraction(parts[0])
    if kind == "other":
        return Opaque()
    raise Ended("the program did not answer as it should")
