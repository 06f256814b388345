"""JSON records of our own as dataclasses, each field of its type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json

R = TypeVar("R")


class InvalidRecord(Exception):
    """A record that cannot be read; the message is the reason, for a parenthesis."""


def read_record(path: Path, kind: type[R]) -> R:
    """The record in a file. Raises InvalidRecord when it is missing, damaged or another's."""
    try:
        # as JSON again: strict validation takes a list for a tuple there alone
        return TypeAdapter(kind).validate_json(json.dumps(read_json(path)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRecord(f"{where}: {first['msg']}" if where else first["msg"]) from error
    except ArtifactError as error:
        raise InvalidRecord(str(error).split(";")[0].removesuffix(".")) from error
