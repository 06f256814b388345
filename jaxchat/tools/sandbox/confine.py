"""How a process locks itself in, and how it finds out whether it can (layer 1).

Runs in the launcher's children only: nothing here can be undone.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys

from jaxchat.tools.sandbox import kernel, landlock, limits, namespaces, seccomp

TYPE_CHECKING = False  # as in kernel.py
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# In the order of their use.
MECHANISMS = (
    "pid namespace",
    "net namespace",
    "ipc namespace",
    "private root",
    "rlimits",
    "no capabilities",
    "no_new_privs",
    "landlock",
    "seccomp",
)
_NEEDS = {"landlock": "no_new_privs", "seccomp": "no_new_privs"}


def lock(use: Collection[str], seconds: float, memory_bytes: int, user: int) -> None:
    """Locks the calling process in; its namespaces were entered before it was made.

    `user` is the number of the user that root becomes. Raises OSError if anything fails.
    """
    if unknown := set(use) - set(MECHANISMS):
        raise OSError(f"nothing is known of {', '.join(sorted(unknown))}")
    paths = namespaces.readable_paths()
    own_root = "private root" in use
    if own_root:
        namespaces.make_root(paths, limits.FILE_BYTES)
    if "no capabilities" in use:
        namespaces.give_up_privileges(own_root, user)
    if sys.platform == "linux":  # after the change of user, which would clear it
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # a crash is not handed to a collector of cores
    if "rlimits" in use:
        limits.apply(seconds, memory_bytes, own_user="pid namespace" in use)
    if "no_new_privs" in use:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in use:
        scratch = [namespaces.SCRATCH] if own_root else []
        landlock.restrict([*paths, *namespaces.DEVICES], [*scratch, "/dev/null"])
    if "seccomp" in use:
        seccomp.install()


def available(as_user: bool) -> list[str]:
    """The mechanisms that work here, each tried in a child and seen to have its effect.

    `as_user`: with namespaces inside a user namespace, as who is not root must.
    """
    return [name for name in MECHANISMS if _in_child(functools.partial(_works, name, as_user))]


def _works(name: str, as_user: bool) -> bool:
    before = _links()
    namespaces.enter([name], as_user)
    use = {name, _NEEDS.get(name, name)}

    def inside() -> bool:
        lock(use, 1, 1 << 30, namespaces.UID_BASE + os.getpid())
        return _EFFECTS[name](before)

    return _in_child(inside)


def _in_child(work: Callable[[], bool]) -> bool:
    """The answer of `work` in a forked process; False if it raises or dies."""
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = work()
        finally:
            os._exit(0 if good else 1)
    return os.waitpid(child, 0)[1] == 0


def _links() -> dict[str, str]:
    """What the kernel calls this process's namespaces; nothing where /proc does not say."""
    try:
        return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "ipc")}
    except OSError:
        return {}


def _refused(call: Callable[[], object], *numbers: int) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno in numbers
    return False


def _moved(kind: str, before: dict[str, str]) -> bool:
    return _links().get(kind, "") != before.get(kind, "")


def _too_much_memory(before: object) -> bool:
    try:
        bytearray(1 << 31)
    except MemoryError:
        return True
    return False


_EFFECTS: dict[str, Callable[[dict[str, str]], bool]] = {
    "pid namespace": lambda before: os.getpid() == 1,
    "net namespace": lambda before: _moved("net", before),
    "ipc namespace": lambda before: _moved("ipc", before),
    "private root": lambda before: not (os.path.exists("/proc") or os.path.exists("/etc/passwd")),
    "rlimits": _too_much_memory,
    "no capabilities": lambda before: not kernel.has_capabilities(),
    "no_new_privs": lambda before: kernel.prctl(kernel.PR_GET_NO_NEW_PRIVS) == 1,
    "landlock": lambda before: _refused(lambda: os.listdir("/"), errno.EACCES),
    "seccomp": lambda before: (
        _refused(lambda: os.kill(os.getppid(), 0), errno.EPERM) and _refused(os.fork, errno.EPERM)
    ),
}
