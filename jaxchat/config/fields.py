"""Settings: dataclasses that check and convert their fields, and their hashes.

A field says what it may hold by its type: bool, int, float, str, a tuple or a mapping of them, or
another table; bounds stand beside it, as in `Annotated[int, Range(1, 64)]`. A word in place of a
number is a Literal: `int | Literal["auto"]`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from jaxchat.config.numbers import UNBOUNDED, Range, cut
from jaxchat.errors import ConfigError

INTEGER = Range(-(2**63), UNBOUNDED)


class OneOf(tuple[str, ...]):
    """Texts among which a setting chooses."""

    def check(self, value: str, name: str) -> None:
        """Raises ValueError for another text."""
        if value not in self:
            choices = ", ".join(filter(None, self))
            raise ValueError(f"{name} is {cut(repr(value))}; it must be one of {choices}.")


@dataclasses.dataclass(frozen=True)
class Form:
    """Texts that a regular expression matches whole, and their form in words."""

    pattern: str
    text: str

    def check(self, value: str, name: str) -> None:
        """Raises ValueError for another text."""
        if re.fullmatch(self.pattern, value, re.DOTALL) is None:
            raise ValueError(f"{name} is {cut(repr(value))}; it must be {self.text}.")


class Settings:
    """A table of settings: base of dataclasses without postponed annotations.

    Their fields are converted and checked when one is made. Raises ConfigError.
    """

    table: ClassVar[str]  # its name in errors

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            if (read := convert(value, kind, f"{self.table}.{name}")) is not value:
                object.__setattr__(self, name, read)
        for fault in self.faults():
            raise ConfigError(fault)

    def faults(self) -> Iterator[str]:
        """Sentences about values that do not fit together."""
        return iter(())


LATER = "added when runs had been made already"
X = TypeVar("X")
Later = Annotated[X, LATER]  # at its default such a field is left out of hashes
Count = Annotated[int, Range(1, UNBOUNDED)]
CountOrAuto = Annotated[int | Literal["auto"], Range(1, UNBOUNDED)]
Whole = Annotated[int, Range(0, UNBOUNDED)]
Positive = Annotated[float, Range(0, math.inf, whole=False, open=True)]
NotNegative = Annotated[float, Range(0, math.inf, whole=False)]
Fraction = Annotated[float, Range(0, 1, whole=False)]
Decay = Annotated[float, Range(0, 1, whole=False, open_end=True)]  # of a running average


def kinds(cls: type) -> dict[str, Any]:
    """Field -> its type, with its rule where it has one."""
    return {f.name: f.type for f in dataclasses.fields(cls)}


def plain(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what is beside it in Annotated, and that: rules, LATER."""
    if get_origin(kind) is Annotated:
        return kind.__origin__, kind.__metadata__
    return kind, ()


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as a type has it; integers are taken for floats, lists for tuples.

    Raises ConfigError, where it is called `where`, for another type, a number that is not finite or
    no int64, and for what breaks a rule.
    """
    kind, rules = plain(kind)
    if get_origin(kind) is Union:  # a number, or a word in its place
        kind, word = get_args(kind)
        (auto,) = get_args(word)
        if value == auto:
            return auto
        if isinstance(value, str):
            raise ConfigError(f'{where} is {cut(repr(value))}; it must be a number or "{auto}".')
    origin = get_origin(kind)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1023 else math.inf
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it must be a list of strings.")
        item_kind = get_args(kind)[0]
        return tuple(convert(v, item_kind, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None:  # the one kind left: names to shares
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} is {value!r}; it must be a table of numbers.")
        share = get_args(kind)[1]
        return {key: convert(item, share, f"{where}.{key}") for key, item in value.items()}
    if type(value) is not kind:
        shown = cut(repr(value) if isinstance(value, str) else str(value))
        hint = ": put it in double quotes" if kind is str else ""
        raise ConfigError(
            f"{where} is {shown}, of type {type(value).__name__}; it must be of type "
            f"{kind.__name__}{hint}."
        )
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}; it must be a finite number.")
    try:
        for rule in rules if kind is not int else (INTEGER, *rules):
            if rule is not LATER:
                rule.check(value, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return value


T = TypeVar("T", bound=Settings)


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """The settings `cls` of a TOML table, which is called `where` in errors.

    Raises ConfigError for a key that is no field and as `convert` does.
    """
    check_keys(table, kinds(cls), where)
    try:
        return cls(**table)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{cls.table}.", f"{where}.", 1)) from error


def check_keys(table: Collection[str], known: Collection[str], where: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest one that is."""
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known keys are {', '.join(sorted(known))}."
            )
            raise ConfigError(f"{where} has the unknown key {key!r}; {hint}")


def hashed_settings(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as its hash has them: without `Later` ones at their defaults."""
    unset = {
        f.name
        for f in dataclasses.fields(config)
        if LATER in plain(f.type)[1] and getattr(config, f.name) == f.default
    }
    values: dict[str, Any] = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in unset}
