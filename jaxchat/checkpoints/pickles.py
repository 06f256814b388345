"""Reads pickles without executing them: their opcodes, by a machine that knows only plain values.

A pickle is a program that may call any function of Python. Here nothing is ever imported or called:
a name that a pickle mentions is looked up in a table of the caller's, which says what stands for
it, and whatever the table or this machine does not know is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat.errors import TokenizerError
from jaxchat.tokenizer import Tokenizer

MAX_BYTES = 64 << 20  # of a pickle: tensors are not in it
PICKLED_TOKENIZER = "tokenizer.pkl"  # nanochat's, a pickled tiktoken.Encoding
_ENCODING = {"name": str, "pat_str": str, "mergeable_ranks": dict, "special_tokens": dict}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BININT BININT1 BININT2 LONG1 BINFLOAT".split()
)


class RefusedPickle(ValueError):
    """A pickle that is damaged, or that wants what is not allowed; the message says what."""


@dataclass(frozen=True)
class Name:
    """A name `module name` that a pickle mentions and the table knows."""

    text: str


@dataclass
class Record:
    """An object of a class that the table knows, with what the pickle says of it."""

    state: Any = None


# What stands for a call of a name with these arguments; None where it may only be mentioned.
Names = Mapping[str, Callable[[tuple[Any, ...]], Any] | None]


def read_pickle(data: bytes, names: Names, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value that a pickle describes, of plain values, `Record`s and what `names` makes.

    Args:
        names: by `module name`, what stands for a call.
        persistent: what stands for a persistent id, as torch's storages have; None: there are none.

    Raises RefusedPickle.
    """
    if len(data) > MAX_BYTES:
        raise RefusedPickle(f"its pickle has {len(data):,} bytes, more than {MAX_BYTES:,}")
    machine = _Machine(names, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except RefusedPickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise RefusedPickle(f"its pickle is damaged ({type(error).__name__})") from error
    raise RefusedPickle("its pickle has no end")


class _Machine:
    """The stack, the stacks below each mark, and the memo."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Executes one opcode, if it is one of those that only describe data."""
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "APPEND" | "SETITEM":
                self.add(self.pop(1 if opcode == "APPEND" else 2), opcode)
            case "APPENDS" | "SETITEMS":
                self.add(self.pop_mark(), opcode)
            case "BUILD":
                self.build()
            case _:
                value = self.value(opcode, argument)  # may exchange the stack
                self.stack.append(value)

    def value(self, opcode: str, argument: Any) -> Any:
        """What an opcode puts on the stack, for the things that it takes from there."""
        match opcode:
            case "EMPTY_DICT":
                return {}
            case "EMPTY_LIST":
                return []
            case "EMPTY_TUPLE":
                return ()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self.pop(int(opcode[-1])))
            case "TUPLE":
                return tuple(self.pop_mark())
            case "BINGET" | "LONG_BINGET":
                return self.memo[argument]
            case "GLOBAL":
                return self.name(argument)
            case "STACK_GLOBAL":
                words = self.pop(2)
                if not all(type(word) is str for word in words):
                    raise TypeError
                return self.name(" ".join(words))
            case "REDUCE" | "NEWOBJ":
                return self.call(*self.pop(2))
            case "BINPERSID":
                if self.persistent is None:
                    raise RefusedPickle("its pickle refers to something outside of it")
                return self.persistent(self.stack.pop())
        if opcode in _CONSTANTS:
            return _CONSTANTS[opcode]
        if opcode in _LITERALS:
            return argument
        raise RefusedPickle(f"its pickle has the opcode {opcode}, which no weights need")

    def pop(self, count: int) -> list[Any]:
        """The last `count` values."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        """What is above the last mark."""
        above, self.stack = self.stack, self.marked.pop()
        return above

    def add(self, items: list[Any], opcode: str) -> None:
        """Adds items to the list, or keys and values in turns to the dict, on top of the stack."""
        target = self.stack[-1]
        if type(target) is not (list if opcode.startswith("APPEND") else dict):
            raise TypeError
        if type(target) is list:
            target.extend(items)
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, bytes, int):  # the hash of nested tuples may take for ever
                raise TypeError
            target[key] = value

    def name(self, text: str) -> Name:
        """A name, where the table has it."""
        if text not in self.names:
            named = str(text)[:100].replace(" ", ".", 1)
            raise RefusedPickle(
                f"its pickle names {named!r}, which no weights need; nothing of it was executed"
            )
        return Name(text)

    def call(self, called: Any, arguments: Any) -> Any:
        """What stands for a call."""
        stands = self.names[called.text] if type(called) is Name else None
        if stands is None or type(arguments) is not tuple:
            raise RefusedPickle("its pickle calls what cannot be called; nothing was executed")
        return stands(arguments)

    def build(self) -> None:
        """Gives an object its state."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record:
            target.state = state
        elif type(target) is not dict:  # of an OrderedDict, torch notes versions of modules
            raise TypeError


def read_pickled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in nanochat's tokenizer.pkl. Raises TokenizerError for anything else in there.

    It holds a name, a pattern, ranks and special tokens: plain values. What an Encoding does when
    it is unpickled is never done.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RefusedPickle(f"it has more than {MAX_BYTES:,} bytes")
        value = read_pickle(path.read_bytes(), {"tiktoken.core Encoding": _encoding})
        return Tokenizer.from_ranks(*_fields(value.state if type(value) is Record else None))
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # TokenizerError, too
        raise TokenizerError(
            f"{path} cannot be used: {str(error).removesuffix('.')}. Name a folder that has a "
            "tokenizer.json with --tokenizer."
        ) from error


def _encoding(arguments: tuple[Any, ...]) -> Record:
    if arguments:
        raise RefusedPickle("its Encoding is made in an unusual way")
    return Record()


def _fields(state: Any) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """Ranks, pattern and special tokens of an Encoding's state, with their types checked."""
    if type(state) is not dict or state.keys() != _ENCODING.keys():
        raise RefusedPickle("it holds no tiktoken.Encoding with its ranks")
    if any(type(state[name]) is not kind for name, kind in _ENCODING.items()):
        raise RefusedPickle("its Encoding has fields of other types")
    for field, kind in (("mergeable_ranks", bytes), ("special_tokens", str)):
        entries = state[field].items()
        if any(type(key) is not kind or type(rank) is not int for key, rank in entries):
            raise RefusedPickle(f"its {field} are not names and numbers")
    return state["mergeable_ranks"], state["pat_str"], state["special_tokens"]
