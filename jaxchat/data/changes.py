"""Whether a run's own files are still as they were when it read them (I/O; layer 2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxchat.config.schema import RunConfig
from jaxchat.data import own
from jaxchat.data.inputs import Inputs, as_file, own_file, read_inputs, write_inputs
from jaxchat.data.own import Own
from jaxchat.errors import ConfigError


def own_files_changed(config: RunConfig, folder: Path) -> bool:
    """Whether what the user named holds something else than when `gather` read it.

    A file that is gone does not count: what was made of it is there, and a run can be moved. Where
    a file has only moved, its new place is noted. Raises ConfigError for a name of nothing.
    """
    now = own.named(config)
    if not now:
        return False
    read = read_inputs(folder)
    home = folder.parents[2]
    before = read.own or now  # none: of a run made before they were kept
    try:
        moved = _with_persona(config, read, now, before)
        moved = _with_talks(moved, now, before, home)
        moved = _with_text(config, moved, now, before, home)
    except _Changed:
        return True
    if moved != read:
        write_inputs(folder, moved)
    return False


class _Changed(Exception):
    """What is there now is not what was read."""


def _is_gone(name: str, before: str) -> bool:
    """Whether what was read is no longer there. Raises ConfigError for another name of nothing."""
    path = own.path_of(name)
    if name != before and not path.exists():
        raise ConfigError(f"{path} does not exist; correct its name.")
    return not path.exists()


def _with_persona(config: RunConfig, read: Inputs, now: Own, before: Own) -> Inputs:
    there = now.persona and not _is_gone(now.persona, before.persona)
    if there and own.persona(config) != read.persona:
        raise _Changed
    return replace(read, own=replace(now, content=before.content))


def _with_talks(read: Inputs, now: Own, before: Own, home: Path) -> Inputs:
    """The same files of conversations at their places now."""
    chat = {n: splits for n, splits in read.chat.items() if n not in before.talks.values()}
    for role, name in now.talks.items():
        old = before.talks.get(role)
        if old is None:
            raise _Changed
        splits = read.chat[old]
        if not _is_gone(name, old):
            (there,) = splits["train"]
            found = own_file(own.path_of(name), home)
            if found.sha256 != there.sha256:
                raise _Changed
            splits = {"train": (found,)}
        chat[name] = splits
    return replace(read, chat=chat)


def _with_text(config: RunConfig, read: Inputs, now: Own, before: Own, home: Path) -> Inputs:
    """The same text at its place now; of a run that did not keep what it was, it is kept now."""
    if not now.folder or _is_gone(now.folder, before.folder):
        return read
    found = tuple(map(as_file, own.text(config, home)))
    content = tuple(file.sha256 for file in found)
    same = content == tuple(file.sha256 for file in read.text)
    if before.content and content != before.content:
        raise _Changed
    if not before.content:
        print(_recorded(now.folder, sum(len(file.paths) for file in found), same), flush=True)
    return replace(read, text=found if same else read.text, own=replace(read.own, content=content))


def _recorded(folder: str, files: int, same: bool) -> str:
    told = f"{own.path_of(folder)}: what it holds now ({files:,} files) is recorded"
    if same:
        return f"{told}; it is what the run was made of."
    return (
        f"{told}; the run was made of something else, before that was kept, and stays as it is: "
        "--force data begins with what is there now."
    )
