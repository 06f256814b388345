"""What a program may use: resource limits, set by a process on itself (layer 1)."""

from __future__ import annotations

import resource

FILE_BYTES = 16 * 2**20  # of one file, and of all files in a private root
OPEN_FILES = 64
TASKS = 32  # processes and threads of its user
STACK_BYTES = 8 * 2**20  # of each thread


def cpu_seconds(seconds: float) -> int:
    """Processor time, of all threads together, for `seconds` of wall-clock time."""
    return int(seconds) + 2


def apply(seconds: float, memory_bytes: int, own_user: bool) -> None:
    """Limits the calling process for good; the wall clock is the supervisor's to watch.

    `memory_bytes` is of address space, which the interpreter itself is part of. Tasks are counted
    for a user, so they are limited only where the process's user is its own (`own_user`); else
    memory bounds the threads. Raises OSError.
    """
    for name, most in (
        ("CORE", 0),
        ("CPU", cpu_seconds(seconds)),
        ("FSIZE", FILE_BYTES),
        ("NOFILE", OPEN_FILES),
        ("STACK", STACK_BYTES),
        ("MEMLOCK", 0),
        *([("NPROC", TASKS)] if own_user else []),
        ("AS", memory_bytes),
    ):
        _lower(name, most)


def _lower(name: str, most: int) -> None:
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is None:  # another system
        return
    _, hard = resource.getrlimit(number)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(number, (most, most))
