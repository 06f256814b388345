"""How a process sandboxes itself, and how it finds out whether it can.

Runs in the launcher's children only: nothing here can be undone.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection

from jaxchat.tools.sandbox import kernel, landlock, namespaces, seccomp

MECHANISMS = (
    "no_new_privs",  # keeps set-user-id programs from giving rights
    "rlimits",  # bounds memory, processor time, file size, open files and tasks
    "seccomp",  # forbids processes, sockets, signals to others and most of the kernel
    "landlock",  # opens the files that Python needs and no others
    "no capabilities",  # takes away the rights of root
    "private root",  # hides all other files, and gives programs a /tmp of their own to write in
    "pid namespace",  # hides other processes
    "net namespace",  # hides the network's interfaces
    "ipc namespace",  # hides other programs' shared memory and message queues
)
_NEEDS = {"landlock": "no_new_privs", "seccomp": "no_new_privs"}

FILE_BYTES = 16 * 2**20  # of one file, and of all files in a private root
OPEN_FILES = 64
TASKS = 32  # processes and threads of its user
STACK_BYTES = 8 * 2**20  # of each thread


def enter_sandbox(use: Collection[str], seconds: float, memory_bytes: int, user: int) -> None:
    """Sandboxes the calling process; its namespaces were entered before it was made.

    `user` is the number of the user that root becomes. Raises OSError if anything fails.
    """
    if unknown := set(use) - set(MECHANISMS):
        raise OSError(f"unknown mechanisms: {', '.join(sorted(unknown))}")
    paths = namespaces.readable_paths()
    own_root = "private root" in use
    if own_root:
        namespaces.make_root(paths, FILE_BYTES)
    if "no capabilities" in use:
        namespaces.give_up_privileges(own_root, user)
    if sys.platform == "linux":  # after the change of user, which would clear it
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a crash is not handed to a collector of cores
    if "rlimits" in use:
        _limit(seconds, memory_bytes, own_user="pid namespace" in use)
    if "no_new_privs" in use:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in use:
        scratch = [namespaces.SCRATCH] if own_root else []
        landlock.restrict([*paths, *namespaces.DEVICES], [*scratch, "/dev/null"])
    if "seccomp" in use:
        seccomp.install()


def cpu_seconds(seconds: float) -> int:
    """Processor time, of all threads together, for `seconds` of wall-clock time."""
    return int(seconds) + 2


def _limit(seconds: float, memory_bytes: int, own_user: bool) -> None:
    """Limits the calling process for good; the launcher watches the wall clock.

    `memory_bytes` is of address space, which includes the interpreter. Tasks are counted for a
    user, so they are limited only where the process's user is its own (`own_user`); else memory
    bounds the threads. Raises OSError.
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
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:  # another system
            continue
        _, hard = resource.getrlimit(number)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))


def available(as_user: bool) -> list[str]:
    """The mechanisms that work here, each tried in a child and seen to have its effect.

    `as_user`: with namespaces inside a user namespace, which is how others than root make them.
    """
    return [name for name in MECHANISMS if _in_child(functools.partial(_works, name, as_user))]


def _works(name: str, as_user: bool) -> bool:
    before = _links()
    namespaces.enter([name], as_user)
    use = {name, _NEEDS.get(name, name)}

    def inside() -> bool:
        enter_sandbox(use, 1, 1 << 30, namespaces.UID_BASE + os.getpid())
        return _EFFECTS[name](before)

    return _in_child(inside)


def _in_child(work: Callable[[], bool]) -> bool:
    """The result of `work` in a forked process; False if it raises or dies."""
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


def _links() -> dict[str, str]:
    """The kernel's names of this process's namespaces; empty without /proc."""
    try:
        return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc")}
    except OSError:
        return {}


def _fails(call: Callable[[], object], number: int) -> bool:
    """Whether a call fails with this errno; a MemoryError is ENOMEM."""
    try:
        call()
    except MemoryError:
        return number == errno.ENOMEM
    except OSError as error:
        return error.errno == number
    return False


def _moved(kind: str, before: dict[str, str]) -> bool:
    return _links().get(kind, "") != before.get(kind, "")


_EFFECTS: dict[str, Callable[[dict[str, str]], bool]] = {
    "pid namespace": lambda before: os.getpid() == 1,
    "net namespace": lambda before: _moved("net", before),
    "ipc namespace": lambda before: _moved("ipc", before),
    "private root": lambda before: not (os.path.exists("/proc") or os.path.exists("/etc/passwd")),
    "rlimits": lambda before: _fails(lambda: bytearray(1 << 31), errno.ENOMEM),
    "no capabilities": lambda before: not kernel.has_capabilities(),
    "no_new_privs": lambda before: kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1,
    "landlock": lambda before: _fails(lambda: os.listdir("/"), errno.EACCES),
    "seccomp": lambda before: (
        _fails(lambda: os.kill(os.getppid(), 0), errno.EPERM) and _fails(os.fork, errno.EPERM)
    ),
}
