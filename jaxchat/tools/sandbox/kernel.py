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

# Numbers that differ between the two processors: (x86_64, aarch64).
_NUMBERS = {"pivot_root": (155, 41), "capset": (126, 91), "capget": (125, 90)}
_PROCESSORS = ("x86_64", "aarch64")
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library this interpreter is linked with."""
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """`result` of a call of the C library, or OSError if it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, what: str, *arguments: object) -> int:
    """A system call by its number; plain integers are passed as C longs."""
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(int(libc().syscall(ctypes.c_long(number), *passed)), what)


def processor() -> str | None:
    """ "x86_64" or "aarch64"; None on others, and where the interpreter itself has 32 bits."""
    machine = os.uname().machine if hasattr(os, "uname") else ""
    return machine if machine in _PROCESSORS and ctypes.sizeof(ctypes.c_void_p) == 8 else None


def _number(name: str) -> int:
    known = processor()
    if known is None:
        raise OSError(f"{name}: its number on this processor is unknown")
    return _NUMBERS[name][_PROCESSORS.index(known)]


def prctl(option: int, *arguments: object) -> int:
    """prctl(2), whose arguments are unsigned longs."""
    passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    passed += [ctypes.c_ulong(0)] * (4 - len(passed))
    return check(int(libc().prctl(ctypes.c_int(option), *passed)), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2); `os.unshare` is Python 3.12's."""
    check(libc().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    names = [os.fsencode(text) if text else None for text in (source, target, kind)]
    check(
        libc().mount(*names, ctypes.c_ulong(flags), os.fsencode(data) if data else None),
        f"mount {target}",
    )


def unmount(target: str, flags: int) -> None:
    """umount2(2)."""
    check(libc().umount2(os.fsencode(target), ctypes.c_int(flags)), f"unmount {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2), which the C library does not wrap."""
    paths = (ctypes.c_char_p(os.fsencode(path)) for path in (new, old))
    syscall(_number("pivot_root"), "pivot_root", *paths)


def drop_bounding_set() -> None:
    """Makes sure that no program executed later brings a capability; root's right alone."""
    for capability in range(_CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # beyond the last one, or there is no right to drop any
            break


def drop_capabilities() -> None:
    """Gives up every capability of the calling thread, for good."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    syscall(_number("capset"), "capset", ctypes.byref(header), ctypes.byref(_sets()))


def has_capabilities() -> bool:
    """Whether the calling thread has, or could take, any capability."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = _sets()
    syscall(_number("capget"), "capget", ctypes.byref(header), ctypes.byref(sets))
    return any(sets)


def _sets() -> ctypes.Array[ctypes.c_uint32]:
    """Two times (effective, permitted, inheritable), 32 capabilities each."""
    return (ctypes.c_uint32 * 6)()
