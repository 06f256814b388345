"""One file of text becomes two: one to train on, and one held out, its end (I/O; layer 2)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat.data.shards import ShardInput
from jaxchat.data.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import atomic_folder, read_json, sha256_file, write_json
from jaxchat.progress import Progress

FORMAT = "jaxchat-split-1"
RECORD = "split.json"
NAMES = ("train.jsonl", "heldout.jsonl")
SHARE = 20  # the last twentieth of the characters is held out,
MOST = 64_000_000  # but not more of them,
ROWS = 4  # and at least so many rows, of four characters a token, where that is no half


@dataclass(frozen=True)
class Split:
    """Two inputs of shards, the second held out, and how many characters each has."""

    name: str  # of the file
    inputs: tuple[ShardInput, ShardInput]
    characters: tuple[int, int]

    def __str__(self) -> str:
        training, held_out = self.characters
        return (
            f"{self.name} is the only file of text, so it is split: its first {training:,} "
            f"characters are trained on, its last {held_out:,} are held out"
        )


def split_file(file: ShardInput, folder: Path, row_tokens: int) -> Split:
    """Splits the only input that there is, into `folder`; what is there of it already is kept.

    Between two documents, where the held-out ones are not much more or less than they should be;
    else within one, at a line's end. Raises ConfigError for text too short to be split.
    """
    wanted = {"format": FORMAT, "sha256": file.sha256, "row_tokens": row_tokens}
    characters = _read(folder, wanted) or _write(file, folder, wanted, row_tokens)
    train, held_out = (
        ShardInput(f"{name} of {file.name}", sha256_file(path), (path,), path.stat().st_size)
        for name, path in ((name, folder / name) for name in NAMES)
    )
    return Split(file.name, (train, held_out), characters)


def _read(folder: Path, wanted: Mapping[str, Any]) -> tuple[int, int] | None:
    """The characters of both parts, where they were made of this and are whole."""
    try:
        record = read_json(folder / RECORD)
        made_of = {name: record[name] for name in wanted}
        whole = [sha256_file(folder / name) for name in NAMES] == record["parts"]
        training, held_out = record["characters"]
    except (ArtifactError, OSError, KeyError, TypeError, ValueError):
        return None
    return (training, held_out) if whole and made_of == wanted else None


def _write(
    file: ShardInput, folder: Path, wanted: Mapping[str, Any], row_tokens: int
) -> tuple[int, int]:
    texts = TextFiles(map(str, file.paths))
    with Progress(f"splitting {file.name}", 2 * texts.size // 1_000_000, "MB") as bar:

        def read(before: int) -> Iterator[str]:
            for text in texts:
                bar.update((before + texts.done) // 1_000_000)
                yield text

        total = sum(map(len, read(0)))
        if total < 2:
            raise ConfigError(
                f"{file.paths[0]} holds {total} characters of text, too few to train on some and "
                "hold out the others; give more text."
            )
        held_out = min(max(min(total // SHARE, MOST), ROWS * row_tokens * 4), total // 2)
        counts = [0, 0]
        with atomic_folder(folder) as temporary, ExitStack() as stack:
            paths = [temporary / name for name in NAMES]
            files = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
            for part, text in divided(read(texts.size), total - held_out, held_out):
                files[part].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                counts[part] += len(text)
            stack.close()
            parts = [sha256_file(path) for path in paths]
            write_json(temporary / RECORD, {**wanted, "characters": counts, "parts": parts})
    return counts[0], counts[1]


def divided(texts: Iterable[str], training: int, held_out: int) -> Iterator[tuple[int, str]]:
    """(0, text) of about the first `training` characters, then (1, text) of the `held_out` last.

    The text in the middle is held out whole, unless it has more characters than are to be: then
    it is cut at the end of a line, or wherever there is none.
    """
    seen = 0
    for text in texts:
        before, seen = seen, seen + len(text)
        if seen <= training:
            yield 0, text
        elif before >= training or len(text) <= held_out:
            yield 1, text
        else:
            place = training - before
            place = text.rfind("\n", 0, place) + 1 or place
            yield 0, text[:place]
            yield 1, text[place:]
