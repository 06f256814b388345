"""What a user sees when a command cannot go on: one sentence, and an exit code (layer 4)."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxchat.signals import REQUEUE, Interrupted, install_handlers


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what, and what to do."""


class ArtifactError(RuntimeError):
    """An artefact that is missing, foreign or damaged; the message says which and what to do."""


class BusyError(RuntimeError):
    """Another process works on the run; the message says which."""


class GroupError(RuntimeError):
    """The processes did not find each other, or do not fit together."""


class OutOfMemory(Exception):
    """A device cannot hold a step; the message is a sentence for the user, with what to do."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be made, loaded or used as asked; the message says why."""


EXIT_CODES = f"""\
exit codes:
  0    done
  1    something on the machine is in the way: a disk, memory, an artefact, numbers not finite
  2    the command or its configuration asks for what does not exist
  {REQUEUE}   stopped by SIGTERM or SIGUSR1, as schedulers send them; the same command goes on
  130  stopped by Ctrl-C; the same command goes on"""

_TOLD = (ArtifactError, BusyError, FloatingPointError, GroupError, OutOfMemory, TokenizerError)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def guarded(work: Callable[[], int], home: Path) -> int:
    """Runs `work` and returns its exit code; what a user can mend is told in one sentence.

    Any other exception is a bug of ours and keeps its traceback. `home` is where files are written.
    """
    install_handlers()
    try:
        return work()
    except BrokenPipeError:  # whoever read our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except BaseException as error:
        told = explain(error, home)
        if told is None:
            raise
        sentence, code = told
        print(sentence, file=sys.stderr, flush=True)
        return code


def explain(error: BaseException, home: Path) -> tuple[str, int] | None:
    """The sentence and the exit code for an error that the user can mend; None for others."""
    if isinstance(error, Interrupted | KeyboardInterrupt):
        sentence = "Interrupted; give the same command again to go on."
        return sentence, getattr(error, "exit_code", 128 + signal.SIGINT)
    if isinstance(error, ConfigError):
        return f"jaxchat: {error}", 2
    if isinstance(error, _TOLD):
        return f"jaxchat: {error}", 1
    if any(_is_full(cause) for cause in _chain(error)):
        full = _path(error)
        # What is written goes to the home, but for --out and for the system's temporary files.
        where = f"the disk of {full}" if full else f"a disk, most likely the disk of {home},"
        return (
            f"jaxchat: {where} is full; free some space, or name another folder with --home, and "
            "give the same command again: what is complete is kept.",
            1,
        )
    if isinstance(error, ImportError) and _not_installed(error):
        return (
            f"jaxchat: this Python lacks a part of jaxchat ({error}); use .venv/bin/python, which "
            "python3 bootstrap.py run makes.",
            1,
        )
    if (number := _of_tensorstore(error)) is not None:
        error = OSError(number, os.strerror(number), _named_in(error))
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        return _file_or_folder(error, home), 1
    return (_refused(error, home), 1) if isinstance(error, OSError) else None


def _refused(error: OSError, home: Path) -> str:
    """The sentence for what the operating system, or a library in its words, does not allow."""
    path = _path(error)
    reason = error.strerror or str(error) or type(error).__name__
    if path is None:
        return (
            f"jaxchat: a file could not be read or written ({reason}), and it is not said which; "
            f"see to the files that this command names, and to {home}."
        )
    if path.absolute().is_relative_to(home):
        advice = ", or name another folder with --home or JAXCHAT_HOME"
    else:
        advice = ", or name another file or folder"
    return f"jaxchat: {path} cannot be used ({reason}); see to it{advice}."


def _file_or_folder(error: OSError, home: Path) -> str:
    """A file where a folder is meant, or the reverse; not the home's fault."""
    path = _path(error)
    if path is None:
        return _refused(error, home)
    file = next((p for p in (path, *path.parents) if p.exists() and not p.is_dir()), None)
    if file is None:
        return f"jaxchat: {path} cannot be used: it is a folder, where a file is meant."
    which = "it" if file == path else str(file)
    return f"jaxchat: {path} cannot be used: {which} is a file, where a folder is meant."


def _not_installed(error: ImportError) -> bool:
    ours = (error.name or "").split(".")[0] == "jaxchat"
    return not ours or "_bpe" in str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _is_full(error: BaseException) -> bool:
    """Orbax and TensorStore tell a full disk in words, in errors of many types."""
    by_number = isinstance(error, OSError) and error.errno in _FULL
    return by_number or os.strerror(errno.ENOSPC) in str(error)


def _of_tensorstore(error: BaseException) -> int | None:
    """The number of the system's error that TensorStore tells in words of its own."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def _named_in(error: BaseException) -> str | None:
    """The path that TensorStore puts in quotes."""
    found = re.search(r'"(/[^"]+)"', str(error))
    return found[1] if found else None


def _path(error: BaseException) -> Path | None:
    """The file that the error, or what led to it, is about; None where nobody says."""
    named = (e.filename for e in _chain(error) if isinstance(e, OSError))
    return next((Path(name) for name in named if isinstance(name, str)), None)
