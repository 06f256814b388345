"""Number types and options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxchat.config import numbers
from jaxchat.config.fields import OneOf, kinds, plain
from jaxchat.config.numbers import NumberError, Range


class Parser(argparse.ArgumentParser):
    """A parser that takes --home, as those of its commands do: it may stand anywhere."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument(
            "--home",
            type=Path,
            default=argparse.SUPPRESS,  # so that a command's does not undo what stood before it
            help="where all artefacts are (default JAXCHAT_HOME or ~/.cache/jaxchat)",
        )

    def option(
        self,
        flags: str,
        kind: Callable[[str], Any] = str,
        metavar: str | None = None,
        text: str | None = None,
        default: object = None,
        **more: Any,
    ) -> None:
        """Adds an option with a value; `flags` are its names, separated by spaces."""
        names = flags.split()
        self.add_argument(*names, type=kind, metavar=metavar, help=text, default=default, **more)

    def switch(self, flags: str, text: str, **more: Any) -> None:
        """Adds an option without a value."""
        self.add_argument(*flags.split(), action="store_true", help=text, **more)


def number(allowed: Range) -> Callable[[str], Any]:
    """The reader of a number in a range: an int, or a float where it is not of whole numbers."""

    def read(text: str) -> float:
        try:
            return allowed.parse(text)
        except NumberError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


positive = number(numbers.COUNT)
whole = number(numbers.WHOLE)
seed = number(numbers.SEED)
temperature = number(numbers.TEMPERATURE)
min_p = number(numbers.MIN_P)
repetition_penalty = number(numbers.REPETITION_PENALTY)
seconds = number(numbers.SECONDS)
depth = number(numbers.DEPTH)
row_tokens = number(numbers.ROW_TOKENS)
at_once = number(numbers.AT_ONCE)


def add_field(
    parser: Parser,
    cls: type,
    field: str,
    metavar: str | None,
    text: str,
    flag: str = "",
) -> None:
    """A flag that sets a field of a configuration, in the field's range; unset without it.

    A text flag with several values may be given several times; a switch turns the default over.
    """
    kind, rules = plain(kinds(cls)[field])
    options: dict[str, Any] = {"dest": field, "help": text, "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = "store_false" if getattr(cls, field) else "store_true"
    else:
        options["metavar"] = metavar
        options["type"] = next((number(r) for r in rules if isinstance(r, Range)), None)
        options["choices"] = next((r for r in rules if isinstance(r, OneOf)), None)
        options["action"] = "store" if kind in (int, float, str) else "append"
    parser.add_argument(flag or f"--{field.replace('_', '-')}", **options)


def add_model(parser: Parser, stages: Sequence[str], default: str | None = None) -> None:
    """--run and --stage."""
    parser.option("--run", str, "NAME", "default: the last")
    text = f"default: {default or 'the last complete'}"
    parser.option("-i --stage", str, None, text, default, choices=stages)


def add_hub(parser: Parser, offline: str, address: str) -> None:
    """--offline and --base-url, with their help."""
    parser.switch("--offline", offline)
    parser.option("--base-url", str, "URL", address)
