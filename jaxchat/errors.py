"""Errors that a user may see, each as one sentence, and exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from jaxchat.signals import REQUEUE, Interrupted, install_handlers


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says why and what to do."""


class ArtifactError(RuntimeError):
    """An artefact that is missing, foreign or damaged; the message says which and what to do."""


class BusyError(RuntimeError):
    """Another process works on the run; the message says which."""


class GroupError(RuntimeError):
    """The processes of a run did not find each other, or differ in packages or settings."""


class OutOfMemory(Exception):
    """A device cannot hold a step; the message says what to do."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be made, loaded or used as asked; the message says why."""


EXIT_CODES = f"""\
exit codes:
  0    done
  1    failed on this machine: a disk, memory, an artefact, numbers not finite
  2    the command or its configuration asks for what does not exist
  {REQUEUE}   stopped by SIGTERM or SIGUSR1, as schedulers send them; the same command resumes
  130  stopped by Ctrl-C; the same command resumes"""

_EXPECTED = (ArtifactError, BusyError, FloatingPointError, GroupError, OutOfMemory, TokenizerError)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ErrorHandler:
    """Around a whole command: an error that the user can fix is one sentence and an exit code.

    Any other exception is a bug of ours and keeps its traceback. Artefacts are written to `home`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.exit_code = 0

    def __enter__(self) -> Self:
        install_handlers()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, BrokenPipeError):  # the reader of our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit_code = 128 + signal.SIGPIPE
            return True
        explained = None if error is None else explain(error, self.home)
        if explained is None:
            return False
        sentence, self.exit_code = explained
        print(sentence, file=sys.stderr, flush=True)
        return True


def explain(error: BaseException, home: Path) -> tuple[str, int] | None:
    """The sentence and the exit code for an error that the user can fix; None for others."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        code = getattr(error, "exit_code", 128 + signal.SIGINT)
        return "Interrupted; give the same command again to resume.", code
    if isinstance(error, ConfigError):
        return f"jaxchat: {error}", 2
    if isinstance(error, _EXPECTED):
        return f"jaxchat: {error}", 1
    sentence = _system_error(error, home)
    return None if sentence is None else (f"jaxchat: {sentence}", 1)


def _system_error(error: BaseException, home: Path) -> str | None:
    """The sentence for an error of the disk or of the installation; None for others."""
    path, text = _path(error), str(error)
    if any(map(_is_full, _chain(error))):
        # Files go to the home, but for --out and the system's temporary files.
        where = f"the disk of {path}" if path else f"a disk, most likely the disk of {home},"
        return (
            f"{where} is full; free some space, or name another folder with --home, and give the "
            "same command again: complete parts are saved."
        )
    if isinstance(error, ImportError):
        is_ours = (error.name or "").split(".")[0] == "jaxchat"
        if is_ours and "_bpe" not in text:
            return None
        return (
            f"this Python lacks a part of jaxchat ({error}); use .venv/bin/python, which python3 "
            "bootstrap.py run makes."
        )
    if found := re.search(r"os_error_code='(\d+)'", text):  # TensorStore's, with a path in quotes
        named = re.search(r'"(/[^"]+)"', text)
        error = OSError(int(found[1]), os.strerror(int(found[1])), named[1] if named else None)
        path = _path(error)
    if not isinstance(error, OSError):
        return None
    if path and isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
        if file is None:
            return f"{path} cannot be used: it is a folder, where a file is expected."
        which = "it" if file == path else str(file)
        return f"{path} cannot be used: {which} is a file, where a folder is expected."
    reason = error.strerror or text or type(error).__name__
    if path is None:
        return (
            f"an unnamed file could not be read or written ({reason}); check the files that this "
            f"command names, and {home}."
        )
    at_home = path.absolute().is_relative_to(home)
    other = "folder with --home or JAXCHAT_HOME" if at_home else "file or folder"
    return f"{path} cannot be used ({reason}); fix it, or name another {other}."


def first_line(error: BaseException) -> str:
    """The first line of another package's error, for a parenthesis: at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].removesuffix(".")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _is_full(error: BaseException) -> bool:
    """Whether an error means a full disk: Orbax and TensorStore say so in texts of many types."""
    by_number = isinstance(error, OSError) and error.errno in _FULL
    return by_number or os.strerror(errno.ENOSPC) in str(error)


def _path(error: BaseException) -> Path | None:
    """The file of the error, or of what led to it; None where none names one."""
    named = (e.filename for e in _chain(error) if isinstance(e, OSError))
    return next((Path(name) for name in named if isinstance(name, str)), None)
