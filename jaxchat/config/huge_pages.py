"""Huge pages of memory, for commands that compute on a CPU under Linux.

A training step takes 9 to 27% less with them (docs/log.md). glibc reads its settings when a process
starts, so a command starts itself again, once: as the same process, before anything is imported
that takes long.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from jaxchat import paths

SETTING = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
LEAST_GLIBC = (2, 35)  # older ones do not know the setting
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # as in: always [madvise] never
ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "kfd")  # in /dev: there the CPU does not compute


def restart_with_huge_pages(skip: Collection[str] = (), among: Collection[str] = ()) -> None:
    """Starts this command again with huge pages, unless it has them, or the user decided.

    With one of the arguments `skip`, or none of `among` where there are some, it returns, and
    where the main program is not what the process was started with, as in a notebook.
    """
    given = set(sys.argv[1:])
    if given & {"-h", "--help", *skip} or (among and not given & set(among)):
        return
    if not (is_main_program() and is_useful()) or not paths.set_default(*SETTING):
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def state() -> str:
    """Whether this process has huge pages, or why not, for the doctor."""
    name, value = SETTING
    given = paths.setting(name)
    if not is_useful():
        return "no huge pages: the system has none to offer, or an accelerator computes"
    if given is not None and value in given.split(":"):
        return "huge pages"
    return f"no huge pages: {name} is {given!r}" if given is not None else "no huge pages"


def is_useful() -> bool:
    """Whether glibc would use huge pages here, and the CPU computes."""
    if sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in ACCELERATORS):
        return False
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        modes = MODES.read_text(encoding="utf-8")
        new = tuple(map(int, version.split(".")[:2])) >= LEAST_GLIBC
    except (OSError, ValueError):  # musl, or a kernel without them
        return False
    return library == "glibc" and new and "[never]" not in modes


def is_main_program() -> bool:
    """Whether the process was started with this program and these arguments, and no debugger."""
    count = len(sys.argv) - 1
    started, behind = sys.orig_argv[: len(sys.orig_argv) - count], sys.orig_argv[-count:]
    file = Path(sys.argv[0])
    module = file.parent.name if file.name == "__main__.py" else None
    return (
        bool(sys.executable)
        and sys.gettrace() is None
        and (not count or behind == sys.argv[1:])
        and (started[-2:] == ["-m", module] or started[-1:] == sys.argv[:1])
    )
