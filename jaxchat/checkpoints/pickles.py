"""Reads pickles without executing them: their opcodes, by a machine that knows only plain values.

A pickle is a program that may call any function of Python. Here nothing is ever imported or called:
a name that a pickle mentions is looked up in a table of the caller's, which says what stands for
it, and whatever the table or this machine does not know is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 64 << 20  # of a pickle: tensors are not in it
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BININT BININT1 BININT2 LONG1 BINFLOAT".split()
)
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME"})


class RefusedPickle(ValueError):
    """A pickle that is damaged, or that wants what is not allowed; the message says what."""


@dataclass(frozen=True)
class Name:
    """A name `module name` that a pickle mentions and the table knows."""

    text: str


@dataclass
class Record:
    """An object of a class that the table knows, with what the pickle says of it."""

    state: Any = field(default=None)


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
                return machine.pop()
            machine.step(opcode.name, argument)
    except RefusedPickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise RefusedPickle(f"its pickle is damaged ({type(error).__name__})") from error
    raise RefusedPickle("its pickle has no end")


class _Machine:
    """The stack, the marks on it and the memo."""

    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """What is above the last mark."""
        above, self.stack = self.stack, self.marked.pop()
        return above

    def step(self, opcode: str, argument: Any) -> None:
        """Executes one opcode, if it is one of those that only describe data."""
        if opcode in _IGNORED:
            return
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            if len(self.stack) < count:
                raise IndexError
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        else:
            raise RefusedPickle(f"its pickle has the opcode {opcode}, which no weights need")

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def tuple_from_mark(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def put(self, index: Any) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(flat) % 2:
            raise TypeError
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) not in (str, bytes, int):  # the hash of nested tuples may take for ever
                raise TypeError
            target[key] = value

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.pop_mark())

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def set_all(self, _: Any) -> None:
        self.set_items(self.pop_mark())

    def global_(self, text: Any) -> None:
        if text not in self.names:
            told = str(text)[:100].replace(" ", ".", 1)
            raise RefusedPickle(
                f"its pickle names {told!r}, which no weights need; nothing of it was executed"
            )
        self.stack.append(Name(text))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError
        self.global_(f"{module} {name}")

    def call(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        stands = self.names[called.text] if type(called) is Name else None
        if stands is None or type(arguments) is not tuple:
            raise RefusedPickle("its pickle calls what cannot be called; nothing was executed")
        self.stack.append(stands(arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is Record:
            target.state = state
        elif type(target) is not dict:  # of an OrderedDict, torch notes versions of modules
            raise TypeError

    def persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise RefusedPickle("its pickle refers to something outside of it")
        self.stack.append(self.persistent(self.pop()))


_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_from_mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_all,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
