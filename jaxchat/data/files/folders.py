"""Finding files: those of folders, links followed, and what is left out and why."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxchat.data.files.compressed import refused
from jaxchat.errors import ConfigError

FORMATS = (".txt", ".jsonl", ".parquet")
SUFFIXES = tuple(f"{form}{packed}" for form in FORMATS for packed in ("", ".gz", ".zst"))
TALKS = tuple(kind for kind in SUFFIXES if not kind.startswith(".txt"))  # of conversations
SUFFIXES_TEXT = ".txt, .jsonl and .parquet, each also with .gz or .zst behind"
STDIN = "-"
SHOWN = 3  # names of what is left out, for each reason

NOWHERE = "link that leads nowhere", "links that lead nowhere"
CIRCLE = "link that leads in a circle", "links that lead in a circle"
TWICE = "second name of a file or folder", "second names of files or folders"
HIDDEN = "hidden", "hidden"
SPECIAL = "that is no regular file", "that are no regular files"
Reason = tuple[str, str]  # of one, of several


class Found(NamedTuple):
    """A file that is read. `path` is None for stdin; `kind` is one of SUFFIXES, or "" there."""

    path: Path | None
    size: int
    kind: str


class Listing(NamedTuple):
    """The files that names stand for, in order, and reason -> names of what is left out."""

    files: tuple[Found, ...]
    left_out: Mapping[Reason, tuple[str, ...]]

    def summary(self) -> str:
        """One line: how many files of which kind are read, and what is left out."""
        kinds = Counter(file.kind for file in self.files if file.path is not None)
        read = [f"{count:,} {kind}" for kind, count in sorted(kinds.items())]
        read += ["stdin"] * any(file.path is None for file in self.files)
        summary = f"texts: read {', '.join(read) or 'nothing'}"
        return f"{summary}; left out {self.omitted()}" if self.left_out else summary

    def omitted(self) -> str:
        """The files left out: counts, reasons, and the first names."""
        parts = []
        for (one, several), names in sorted(self.left_out.items()):
            words = one if len(names) == 1 else several
            more = [f"and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
            some = ", ".join([*map(shown, names[:SHOWN]), *more])
            if words.endswith(")"):  # it has a remark of its own
                parts.append(f"{len(names):,} {words.removesuffix(')')}: {some})")
            else:
                parts.append(f"{len(names):,} {words} ({some})")
        return ", ".join(parts)


def shown(name: str) -> str:
    """A file's name that can be printed, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def kind_of(name: str | os.PathLike[str], kinds: tuple[str, ...] = SUFFIXES) -> str:
    """Which of `kinds` a file's name ends in, capitals or not; "" for none of them."""
    parts = os.fspath(name).lower().rsplit(".", 2)
    if len(parts) == 3 and (double := f".{parts[1]}.{parts[2]}") in kinds:
        return double
    single = f".{parts[-1]}"
    return single if len(parts) > 1 and single in kinds else ""


def find(names: Iterable[str]) -> Listing:
    """The files that names stand for: files, folders of files, "-" for stdin.

    Of folders, hidden files and those of hidden folders do not count; links are followed, and each
    real file comes once. Raises ConfigError for a name that is not there or of no known kind, and
    for a folder without any text.
    """
    search = _Search()
    collecting = gc.isenabled()
    gc.disable()  # nothing here has cycles; of 400,000 files the collector took a third of the time
    try:
        files = [found for name in names for found in search.find(name)]
    finally:
        if collecting:
            gc.enable()
    return Listing(tuple(files), {why: tuple(sorted(n)) for why, n in search.left_out.items()})


class _Search:
    """A search, and what it has found so far. Real paths are those without links."""

    def __init__(self) -> None:
        self.left_out: dict[Reason, list[str]] = {}
        self.seen: set[str] = set()  # real paths of files
        self.folders: set[str] = set()  # real paths of folders
        self.nodes: set[tuple[int, int]] = set()  # of files that have several names
        # name below the folder, kind, bytes, and the node where it has several names
        self.found: list[tuple[str, str, int, tuple[int, int] | None]] = []
        self.links: list[str] = []  # not yet followed

    def leave(self, reason: Reason, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    def find(self, name: str) -> list[Found]:
        """The files that one name stands for."""
        if name == STDIN:
            return [Found(None, 0, "")]
        path = Path(name)
        try:
            status = path.stat()
        except OSError as error:
            raise _not_there(path, error) from error
        if stat.S_ISDIR(status.st_mode):
            return self.folder(path)
        kind = kind_of(name)
        if not kind and stat.S_ISREG(status.st_mode):
            raise ConfigError(
                f"{path} is not of a kind that is read as text, which are {SUFFIXES_TEXT}; rename "
                "or convert it, or give it through stdin, whose name is -."
            )
        if not self.is_new(os.path.realpath(path), status):
            self.leave(TWICE, name)
            return []
        return [Found(path, status.st_size, kind or ".txt")]  # such as a shell's <(command)

    def folder(self, path: Path) -> list[Found]:
        """The files below a folder, in the order of their names, folder by folder."""
        root, real = str(path), os.path.realpath(path)
        if real in self.folders:
            self.leave(TWICE, root)
            return []
        self.found.clear()
        self.walk(root, "", real)
        while self.links:  # behind the files that are there themselves, whose names count
            pending, self.links = sorted(self.links), []
            for link in pending:
                self.follow(root, link)
        files = []
        # as paths are sorted, part by part: no name holds a NUL
        for name, kind, size, node in sorted(self.found, key=lambda e: e[0].replace("/", "\0")):
            if node is not None and node in self.nodes:
                self.leave(TWICE, name)
                continue
            if node is not None:
                self.nodes.add(node)
            files.append(Found(path / name, size, kind))
        if not files and TWICE not in self.left_out:
            rest = Listing((), {why: tuple(sorted(n)) for why, n in self.left_out.items()})
            omitted = f"; left out are {rest.omitted()}" if rest.left_out else ""
            raise ConfigError(
                f"{path} holds no .txt, .jsonl or .parquet file, nor one with .gz or .zst "
                f"behind{omitted}."
            )
        return files

    def walk(self, root: str, below: str, real: str) -> None:
        """Notes the files and links below a folder, whose name below the root ends in a slash."""
        pending = [(below, real)]
        while pending:
            below, real = pending.pop()
            if real in self.folders:
                continue
            self.folders.add(real)
            folder = os.path.join(root, below)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        name = below + entry.name
                        if entry.name.startswith("."):
                            self.leave(HIDDEN, name)
                        elif entry.is_symlink():
                            self.links.append(name)
                        elif entry.is_dir(follow_symlinks=False):
                            pending.append((f"{name}/", f"{real}/{entry.name}"))
                        else:
                            status = entry.stat(follow_symlinks=False)
                            self.file(name, f"{real}/{entry.name}", status)
            except OSError as error:
                raise refused(folder, error) from error

    def follow(self, root: str, link: str) -> None:
        """Follows a link."""
        path = os.path.join(root, link)
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise refused(path, error) from error
            self.leave(CIRCLE if error.errno == errno.ELOOP else NOWHERE, link)
            return
        real = os.path.realpath(path)
        if not stat.S_ISDIR(status.st_mode):
            self.file(link, real, status)
        elif f"{os.path.realpath(os.path.dirname(path))}/".startswith(real.rstrip("/") + "/"):
            self.leave(CIRCLE, link)
        elif real in self.folders:
            self.leave(TWICE, link)
        else:
            self.walk(root, f"{link}/", real)

    def file(self, name: str, real: str, status: os.stat_result) -> None:
        """Notes a file, if it is text and not there under another name."""
        kind = kind_of(name)
        if not kind:
            ending = os.path.splitext(name)[1].lower()
            words = f"{shown(ending) or 'without an ending'} (not a text format)"
            self.leave((words, words), name)
        elif not stat.S_ISREG(status.st_mode):
            self.leave(SPECIAL, name)
        elif not self.is_new(real, status):
            self.leave(TWICE, name)
        else:
            node = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
            self.found.append((name, kind, status.st_size, node))

    def is_new(self, real: str, status: os.stat_result) -> bool:
        if not stat.S_ISREG(status.st_mode):
            return True
        if real in self.seen:
            return False
        self.seen.add(real)
        return True


def _not_there(path: Path, error: OSError) -> ConfigError:
    if error.errno == errno.ELOOP:
        return ConfigError(f"{path} is a link that leads in a circle; name the file itself.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        what = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
        return ConfigError(f"{path} {what}; name files, folders of files, or - for stdin.")
    return ConfigError(f"{path} cannot be read ({error.strerror}); name another file or folder.")
