"""The user's own files: text, conversations, a persona.

Each is known by its content. Where it is, and when it was written, decides nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from jaxchat.config.schema import RunConfig
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.records import write_texts
from jaxchat.data.registry import own_conversations
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import (
    atomic_folder,
    atomic_open,
    read_json,
    sha256_file,
    sha256_text,
    write_json,
)
from jaxchat.progress import Progress
from jaxchat.tasks.persona import read_persona

SMALL_BYTES = 64_000_000  # files below this share a shard, or below a twentieth of all
SMALL_ROWS = 16  # but at least this many rows a shard, of four bytes of text a token

CHECKSUMS = "checksums"  # folder of the home
# A file may be written twice within a tick of its file system's clock: a younger one is read again.
YOUNG = 2.0  # seconds

SPLIT_FORMAT = "jaxchat-split-1"
SPLIT_RECORD = "split.json"
SPLIT_NAMES = ("train.jsonl", "heldout.jsonl")
SHARE = 20  # the last twentieth of the characters is held out,
MOST = 64_000_000  # but not more of them,
ROWS = 4  # and at least this many rows, of four characters a token, where that is no half

say = partial(print, flush=True)


@dataclass(frozen=True)
class Own:
    """The user's own files as a configuration names them, and what their text held."""

    folder: str = ""  # of text, or its one file; "": none
    persona: str = ""  # its file; "": none
    talks: Mapping[str, str] = field(default_factory=dict)  # role -> file of conversations
    content: tuple[str, ...] = ()  # hashes of the text, one a shard; () when there is none

    def __bool__(self) -> bool:
        return bool(self.folder or self.persona or self.talks)


NOTHING = Own()


@dataclass(frozen=True)
class InputFile:
    """A file that a run reads, or small ones next to each other that share a shard."""

    name: str  # in manifests and messages
    sha256: str  # as `hash_of` has it
    size: int = 0  # bytes; 0 when unknown
    paths: tuple[Path, ...] = ()  # where they are or will be; (): it has to be fetched first


def as_input(path: Path, sha256: str, name: str = "") -> InputFile:
    """One file as an input; `name`: by default its own."""
    return InputFile(name or path.name, sha256, path.stat().st_size, (path,))


def named(config: RunConfig) -> Own:
    """The files that a configuration names; nothing is read."""
    return Own(config.data.folder, config.data.persona, own_conversations(config))


def path_of(name: str) -> Path:
    """The path of a file or a folder that the user names."""
    return Path(name).expanduser().absolute()


def persona(config: RunConfig) -> dict[str, Any]:
    """The persona in the user's file; {}: there is none."""
    return read_persona(path_of(config.data.persona)) if config.data.persona else {}


def one_file(path: Path, home: Path) -> InputFile:
    """One file of the user's own, its checksum saved in the home."""
    with Checksums(saved_in(home, path), path.parent) as checksums:
        return as_input(path, checksums.of(path))


class Checksums:
    """The checksums of files below a folder, saved so that unchanged files are not read again.

    Size, times and inode decide whether a file has changed since.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        """`path`: where they are saved. What is missing or damaged there is computed again."""
        self._path, self._top = path, os.path.join(folder, "")
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict) and all(isinstance(mark, str) for mark in value.values()):
                self._known = value
        self._used: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Saves those that were asked for, if any is new; a home may be read-only."""
        if error == (None, None, None) and self._used != self._known:
            with contextlib.suppress(OSError), atomic_open(self._path) as file:
                file.write(json.dumps(self._used))  # json.dump would be slow for this many

    def of(self, path: Path) -> str:
        """The sha256 of a file's bytes."""
        name = os.fspath(path).removeprefix(self._top)
        stat = os.stat(path)
        mark = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} "
        known = self._known.get(name, "")
        if known.startswith(mark):
            self._used[name] = known
            return known.removeprefix(mark)
        now, digest = time.time(), sha256_file(path)
        if max(stat.st_mtime, stat.st_ctime) + YOUNG < now:
            self._used[name] = mark + digest
        return digest


def saved_in(home: Path, folder: Path) -> Path:
    """Where a home saves the checksums of the files below a folder, or of one file."""
    return home / CHECKSUMS / f"{sha256_text(str(folder))[:16]}.json"


Checksum = Callable[[Path], str]  # the sha256 of a file's bytes


def hash_of(paths: Sequence[Path], checksum: Checksum = sha256_file) -> str:
    """The hash of an input: of one file its sha256, of several `sha256_text` of theirs."""
    hashes = [checksum(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else sha256_text(*hashes)


def text(config: RunConfig, home: Path, report: bool = False) -> list[InputFile]:
    """The text that a run reads of the user's own folder, or of one file: the inputs of its shards.

    Raises ConfigError for a folder that is not there, or without text.
    """
    row_tokens = config.model.sequence_len + 1
    found = local_inputs(path_of(config.data.folder), row_tokens, home, report)
    return [*found[:-1][: config.data.shards or None], found[-1]]


def local_inputs(
    folder: Path, row_tokens: int, home: Path | None = None, report: bool = False
) -> list[InputFile]:
    """The text files below a folder, in the order of their names, as inputs of shards.

    Small files next to each other share a shard: each shard drops what fills no row. A file may
    stand for a folder that holds it alone. Checksums are saved in `home`. `report` prints which
    files are read and which are not. Raises ConfigError for neither, and for no text.
    """
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; name the folder that holds the text.")
    files = TextFiles([str(folder)])
    if report:
        say(files.listing.summary())
    paths = [path for path in files.paths if path is not None]
    top = folder if folder.is_dir() else folder.parent
    inputs = []
    done = 0
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress("reading checksums", files.size // 1_000_000, "MB"))
        checksum: Checksum = sha256_file
        if home is not None:
            checksum = stack.enter_context(Checksums(saved_in(home, folder), folder)).of
        for group in grouped(files.sizes, row_tokens):
            members = tuple(paths[group.start : group.stop])
            names = [path.relative_to(top).as_posix() for path in (members[0], members[-1])]
            name = names[0] if len(members) == 1 else " to ".join(names)
            size = sum(files.sizes[group.start : group.stop])
            inputs.append(InputFile(name, hash_of(members, checksum), size, members))
            done += size
            bar.update(done // 1_000_000)
    return inputs


def grouped(sizes: Sequence[int], row_tokens: int) -> list[range]:
    """Which files share a shard: neighbours, until they have enough bytes together.

    The last group is held out, so that there are two at least where there are two files.
    """
    enough = max(min(sum(sizes) // 20, SMALL_BYTES), SMALL_ROWS * row_tokens * 4)
    bounds, begun = [0], 0  # begun: bytes of the group that is open
    for number, size in enumerate(sizes):
        if begun >= enough:
            bounds.append(number)
            begun = 0
        begun += size
    if len(bounds) == 1 and len(sizes) > 1:
        bounds.append(len(sizes) - 1)
    return [range(*ends) for ends in itertools.pairwise([*bounds, len(sizes)])]


def with_held_out(found: list[InputFile], folder: Path, row_tokens: int) -> list[InputFile]:
    """Inputs of shards, the last one held out: one file alone is split into `folder`, and reported.

    It is split between two documents, where the held-out ones are not much more or less than they
    should be; else within one, at a line's end. What has been split already stays. Raises
    ConfigError for text too short to be split.
    """
    if len(found) > 1:
        return found
    (file,) = found
    wanted = {"format": SPLIT_FORMAT, "sha256": file.sha256, "row_tokens": row_tokens}
    training, held_out = _read_split(folder, wanted) or _write_split(
        file, folder, wanted, row_tokens
    )
    say(
        f"{file.name} is the only file of text, so it is split: its first {training:,} characters "
        f"are trained on, its last {held_out:,} are held out"
    )
    parts = (folder / name for name in SPLIT_NAMES)
    return [as_input(path, sha256_file(path), f"{path.name} of {file.name}") for path in parts]


def _read_split(folder: Path, wanted: Mapping[str, Any]) -> list[int] | None:
    """The characters of both parts, where they were made of this and are whole."""
    try:
        record = read_json(folder / SPLIT_RECORD)
        made_of = {name: record[name] for name in wanted}
        whole = [sha256_file(folder / name) for name in SPLIT_NAMES] == record["parts"]
        characters: list[int] = record["characters"]
    except (ArtifactError, OSError, KeyError, TypeError, ValueError):
        return None
    return characters if whole and made_of == wanted else None


def _write_split(
    file: InputFile, folder: Path, wanted: Mapping[str, Any], row_tokens: int
) -> list[int]:
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
        divided_texts = divided(read(texts.size), total - held_out, held_out)
        with atomic_folder(folder) as temporary:
            written = write_texts(
                [temporary / name for name in SPLIT_NAMES],
                ((part, {"text": text}) for part, text in divided_texts),
                ascii=False,
            )
            characters = [part["chars"] for part in written]
            parts = [part["sha256"] for part in written]
            record = {**wanted, "characters": characters, "parts": parts}
            write_json(temporary / SPLIT_RECORD, record)
    return characters


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
