"""What the user names of their own: text, conversations, a persona (I/O; layer 2).

Each is known by what it holds. Where it is, and when it was written, decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxchat.config.schema import RunConfig
from jaxchat.data.checksums import Checksums, kept_in
from jaxchat.data.conversations import own_talks
from jaxchat.data.shards import ShardInput, local_inputs
from jaxchat.tasks.persona import read_persona


@dataclass(frozen=True)
class Own:
    """The user's own files as a configuration names them, and what their text held.

    Attributes:
        folder: of text, or its one file; "": none.
        persona: its file; "": none.
        talks: role -> file of conversations (`conversations.own_talks`).
        content: the hashes of the text, one for each shard that it makes; () when there is none.
    """

    folder: str = ""
    persona: str = ""
    talks: Mapping[str, str] = field(default_factory=dict)
    content: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.folder or self.persona or self.talks)


NOTHING = Own()


def named(config: RunConfig) -> Own:
    """What a configuration names; nothing is read."""
    return Own(config.data.folder, config.data.persona, own_talks(config))


def path_of(name: str) -> Path:
    """Where a file or a folder is that the user names."""
    return Path(name).expanduser().absolute()


Tell = Callable[[str], object]


def _silent(summary: str) -> None:
    del summary


def text(config: RunConfig, home: Path, tell: Tell = _silent) -> list[ShardInput]:
    """The text that a run reads of the user's own folder, or of one file: what its shards are of.

    `tell` gets a line that says which files are read. Raises ConfigError for a folder that is not
    there, or without text.
    """
    found = text_below(path_of(config.data.folder), config.model.sequence_len + 1, home, tell)
    return [*found[:-1][: config.data.shards or None], found[-1]]


def text_below(folder: Path, row_tokens: int, home: Path, tell: Tell = _silent) -> list[ShardInput]:
    """The text of a folder, or of one file, as `shards.local_inputs` gives it.

    What it held is kept in the home: what did not change since is not read again.
    """
    with Checksums(kept_in(home, folder), folder) as checksums:
        return local_inputs(folder, row_tokens, checksums.of, tell)


def digest(path: Path, home: Path) -> str:
    """The hash of one file of the user's own."""
    with Checksums(kept_in(home, path), path.parent) as checksums:
        return checksums.of(path)


def persona(config: RunConfig) -> dict[str, Any]:
    """Who the model is, of the user's file; {}: there is none."""
    return read_persona(path_of(config.data.persona)) if config.data.persona else {}
