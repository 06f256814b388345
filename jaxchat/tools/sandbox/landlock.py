"""Landlock: which files a process may reach, without privileges (Linux 5.13; Salaün, 2021).

Numbers and structures: linux/landlock.h. What the kernel's version of it does not know is left
out; the seccomp filter closes those gaps (truncation, sockets, signals) by itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from jaxchat.tools.sandbox import kernel

_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH = 1

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REGULAR = 1 << 4, 1 << 5, 1 << 7, 1 << 8
REFER, TRUNCATE = 1 << 13, 1 << 14

_RIGHTS = (13, 14, 15, 15, 16)  # how many there are in versions 1, 2, ..., 5 and later
_READ = READ_FILE | READ_DIR
_WRITE = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REGULAR | REFER | TRUNCATE
_OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE


def version() -> int:
    """The kernel's version of Landlock; 0 where there is none, or it is switched off."""
    try:
        return kernel.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def restrict(read: Iterable[str], write: Iterable[str]) -> None:
    """Confines the calling thread to what lies beneath these paths; those missing are left out.

    Needs no_new_privs. From version 4 on TCP, and from 6 on signals and abstract sockets that
    leave the sandbox, are denied as well. Raises OSError where there is no Landlock.
    """
    known = version()
    rights = (1 << _RIGHTS[min(known, len(_RIGHTS)) - 1]) - 1 if known else 0
    attributes = struct.pack("=Q", rights)
    attributes += struct.pack("=Q", 0b11) if known >= 4 else b""  # bind and connect TCP
    attributes += struct.pack("=Q", 0b11) if known >= 6 else b""  # abstract sockets, signals
    ruleset = kernel.call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path in read:
            _allow(ruleset, path, rights & _READ)
        for path in write:
            _allow(ruleset, path, rights & (_READ | _WRITE))
        kernel.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        kernel.call("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
