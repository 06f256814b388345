"""Linux system calls that Python's `os` does not wrap, through ctypes.

Everything here raises OSError with the kernel's errno. Nothing is loaded until it is called.
"""

from __future__ import annotations

import ctypes
import functools
import os

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# System calls that the C library does not wrap: their numbers on (x86_64, aarch64). Those above 423
# are the same on all processors.
_NUMBERS = {
    "pivot_root": (155, 41),
    "capset": (126, 91),
    "capget": (125, 90),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """Calls a function of the C library, or a system call that it does not wrap.

    An int is passed as a C long, a str as a path, None as NULL; bytes and what ctypes makes as they
    are. Raises OSError with the kernel's errno.
    """
    head = (_number(name),) if name in _NUMBERS else ()
    passed = [
        ctypes.c_long(argument)
        if isinstance(argument, int)
        else os.fsencode(argument)
        if isinstance(argument, str)
        else argument
        for argument in (*head, *arguments)
    ]
    result = int(getattr(_libc(), "syscall" if head else name)(*passed))
    if result == -1:
        number = ctypes.get_errno()
        what = " ".join([name, *(text for text in arguments if isinstance(text, str))])
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def processor() -> str | None:
    """ "x86_64" or "aarch64"; None on others, and where the interpreter itself has 32 bits."""
    machine = os.uname().machine if hasattr(os, "uname") else ""
    known = machine in ("x86_64", "aarch64") and ctypes.sizeof(ctypes.c_void_p) == 8
    return machine if known else None


def _number(name: str) -> int:
    x86, arm = _NUMBERS[name]
    if x86 != arm and processor() is None:
        raise OSError(f"{name}: its number on this processor is unknown")
    return arm if processor() == "aarch64" else x86


def prctl(option: int, *arguments: object) -> int:
    """prctl(2), with zeros for the arguments that are not given."""
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))


def drop_bounding_set() -> None:
    """Keeps programs that are executed later from gaining capabilities; takes root's rights."""
    for capability in range(_CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # beyond the last one, or there is no right to drop any
            break


def drop_capabilities() -> None:
    """Gives up every capability of the calling thread, for good."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    call("capset", ctypes.byref(header), ctypes.byref(_sets()))


def has_capabilities() -> bool:
    """Whether the calling thread has, or could take, any capability."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = _sets()
    call("capget", ctypes.byref(header), ctypes.byref(sets))
    return any(sets)


def _sets() -> ctypes.Array[ctypes.c_uint32]:
    """Two times (effective, permitted, inheritable), 32 capabilities each."""
    return (ctypes.c_uint32 * 6)()
