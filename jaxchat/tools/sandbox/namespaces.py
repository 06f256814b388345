"""Namespaces, a private root folder, and the loss of privileges.

The root folder is a tmpfs with what Python needs to read, mounted read-only, and an empty /tmp of
bounded size; the way of making it is bubblewrap's (github.com/containers/bubblewrap). Nothing of
it outlives the processes in it.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterable, Sequence

from jaxchat.tools.sandbox import kernel

FLAGS = {
    "private root": kernel.CLONE_NEWNS,
    "pid namespace": kernel.CLONE_NEWPID,
    "net namespace": kernel.CLONE_NEWNET,
    "ipc namespace": kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS,
}
NOBODY = 65534
SCRATCH = "/tmp"  # where programs may write, in the root of their own
FILES = 1_024  # at most, there
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_OLD = "/old"
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
UID_BASE = 1 << 30  # above the users of any system; a process id is added


def enter(wanted: Iterable[str], as_user: bool) -> None:
    """Leaves the caller's namespaces for new ones; `as_user`: inside a new user namespace.

    The pid namespace is that of the children made afterwards. Raises OSError.
    """
    flags = sum(FLAGS.get(name, 0) for name in set(wanted))  # no two share a bit
    if not flags:
        return
    user, group = os.geteuid(), os.getegid()
    kernel.call("unshare", flags | (kernel.CLONE_NEWUSER if as_user else 0))
    if as_user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {user} 1"),
            ("gid_map", f"{NOBODY} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def readable_paths() -> list[str]:
    """What Python reads while it runs: its library, shared libraries, the time zone."""
    library = [path for path in sys.path if os.path.isdir(path)]
    prefix = os.path.dirname(os.path.dirname(os.__file__))
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", prefix]
    single = ["/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    paths: list[str] = []
    for path in sorted({*library, *shared, *single}):
        inside = any(path.startswith(f"{other}/") for other in paths)
        if os.path.exists(path) and not inside and path != "/":
            paths.append(path)
    return paths


def make_root(paths: Sequence[str], scratch_bytes: int) -> None:
    """Makes a root folder of `paths`, read-only, the devices, and SCRATCH; enters it.

    Needs a mount namespace of its own, with rights over it. Raises OSError.
    """
    links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
    sources = {path: os.path.realpath(path) for path in (*paths, *DEVICES)}
    kernel.call("mount", None, "/", None, _MS_REC | _MS_PRIVATE, None)
    _mount_tmpfs(0, "size=1m,mode=755")
    os.mkdir(SCRATCH + _OLD)
    kernel.call("pivot_root", SCRATCH, SCRATCH + _OLD)
    os.chdir("/")
    for path, source in sources.items():
        if path in links and not links[path].startswith("/"):
            os.symlink(links[path], path)  # /lib -> usr/lib
        else:
            _show(_OLD + source, path, _MS_NODEV if path not in DEVICES else 0)
    os.mkdir(SCRATCH)
    _mount_tmpfs(_MS_NOEXEC, f"size={scratch_bytes},nr_inodes={FILES},mode=1777")
    kernel.call("umount2", _OLD, _MNT_DETACH)
    os.rmdir(_OLD)
    _seal("/", _MS_NODEV, 0)
    os.chdir(SCRATCH)


def _mount_tmpfs(flags: int, options: str) -> None:
    flags |= _MS_NOSUID | _MS_NODEV
    kernel.call("mount", "tmpfs", SCRATCH, "tmpfs", flags, options)


def _show(source: str, path: str, flags: int) -> None:
    """Mounts the file or folder `source` at `path`, read-only."""
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.call("mount", source, path, None, _MS_BIND | _MS_REC, None)
    _seal(path, flags, _AT_RECURSIVE)


def _seal(path: str, flags: int, how: int) -> None:
    """Makes a mount read-only, and without set-user-id programs."""
    # struct mount_attr: set, clear, propagation, user namespace
    attributes = struct.pack("=QQQQ", _MS_RDONLY | _MS_NOSUID | flags, 0, 0, 0)
    kernel.call("mount_setattr", _AT_FDCWD, path, how, attributes, len(attributes))


def give_up_privileges(own_root: bool, user: int) -> None:
    """Gives up every capability, and root's user for `user`, whom no other process should be.

    Where neither a root of its own nor the permissions of the folders let another user read
    Python's library, root stays root, but without capabilities.
    """
    kernel.drop_bounding_set()
    if os.getuid() == 0 and (own_root or _readable_by_others(os.__file__)):
        _become(user)
    kernel.drop_capabilities()


def _become(user: int) -> None:
    os.setgroups([])
    for candidate in (user, NOBODY):  # a container may have no more than 65536 users
        try:
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
            return
        except OSError:
            continue
    raise OSError("no other user than root exists here")


def _readable_by_others(path: str) -> bool:
    """Whether every user may reach and read a file."""
    path = os.path.realpath(path)
    if not os.stat(path).st_mode & stat.S_IROTH:
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
    return True
