"""JSON of our own: records as dataclasses, each field of its type; and texts as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json, sha256_file

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


def write_texts(
    paths: Sequence[Path], texts: Iterable[tuple[int, Mapping[str, str]]], *, ascii: bool = True
) -> list[dict[str, Any]]:
    """Writes texts as JSON lines, each to the file of its number, and flushes them onto the disk.

    Of each file the result has how many `documents` and `chars` it holds, and its `sha256`.
    """
    counts: list[dict[str, Any]] = [{"documents": 0, "chars": 0} for _ in paths]
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in paths
        ]
        for number, line in texts:
            files[number].write(json.dumps(line, ensure_ascii=ascii) + "\n")
            counts[number]["documents"] += 1
            counts[number]["chars"] += len(line["text"])
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    return [
        count | {"sha256": sha256_file(path)} for count, path in zip(counts, paths, strict=True)
    ]
