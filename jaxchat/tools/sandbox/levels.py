"""How well this machine can lock a program in (layer 1).

Nothing is guessed from versions: each mechanism is tried in a process of its own and seen to have
its effect, and then a program is run under all of them together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxchat.tools.sandbox import process

LevelName = Literal["full", "partial", "none"]

# Every mechanism, and what it does.
MECHANISMS = {
    "no_new_privs": "keeps set-user-id programs from giving rights",
    "rlimits": "bounds memory, processor time, file size, open files and tasks",
    "seccomp": "forbids processes, sockets, signals to others and most of the kernel",
    "landlock": "opens the files that Python needs and no others",
    "no capabilities": "takes away the rights of root",
    "private root": "hides all other files, and gives programs a /tmp of their own to write in",
    "pid namespace": "hides other processes",
    "net namespace": "hides the network's interfaces",
    "ipc namespace": "hides other programs' shared memory and message queues",
}
# Without one of each of these groups, nothing is run.
REQUIRED = (
    ("no_new_privs",),
    ("rlimits",),
    ("seccomp",),
    ("no capabilities",),
    ("landlock", "private root"),
)
_NAMESPACES = ("private root", "pid namespace", "net namespace", "ipc namespace")
_TRIAL = "print('locked in')"


@dataclass(frozen=True)
class Level:
    """What is used here. "full": every mechanism; "partial": all that are required; or "none".

    At "none" programs run only where somebody insists, under what mechanisms there are.
    `as_user`: the namespaces are those of a user without rights, inside a user namespace.
    """

    name: LevelName
    mechanisms: tuple[str, ...]
    as_user: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """The mechanisms that do not work here."""
        return tuple(name for name in MECHANISMS if name not in self.mechanisms)

    def to_json(self) -> dict[str, object]:
        """For report.json and /health."""
        return {"level": self.name, "mechanisms": list(self.mechanisms), "as_user": self.as_user}


@functools.cache
def detect() -> Level:
    """The level of this machine and user; takes about a fifth of a second, once a process."""
    found = process.probe()
    return next(_working(found), Level("none", _alone(found), False))


def describe(level: Level | None = None) -> str:
    """A few lines for people: the level, what it rests on, and what is missing."""
    level = level or detect()
    lines = [f"sandbox: {level.name}"]
    if level.mechanisms:
        around = " (in a user namespace)" if level.as_user else ""
        lines.append(f"  works: {', '.join(level.mechanisms)}{around}")
    for name in level.missing:
        lines.append(f"  missing: {name}, which {MECHANISMS[name]}")
    if level.name == "none":
        lines.append("  programs of a model are refused here, unless --unsafe-exec is given")
    return "\n".join(lines)


def name_of(mechanisms: Sequence[str]) -> LevelName:
    """The name of a level that uses `mechanisms`."""
    if set(mechanisms) >= set(MECHANISMS):
        return "full"
    good = all(any(name in mechanisms for name in group) for group in REQUIRED)
    return "partial" if good else "none"


def _working(found: dict[str, list[str]]) -> Iterator[Level]:
    """Levels that a program has been run at, best first."""
    ways = sorted(found, key=lambda way: (-len(found[way]), way))
    for way in ways:
        for left_out in ((), ("private root",), _NAMESPACES):
            kept = tuple(name for name in MECHANISMS if name in found[way] and name not in left_out)
            level = Level(name_of(kept), kept, way == "user")
            if level.name != "none" and _runs(level):
                yield level


def _alone(found: dict[str, list[str]]) -> tuple[str, ...]:
    """What works without namespaces: not enough to run a program, unless somebody insists."""
    names = found.get("root", ())
    return tuple(name for name in MECHANISMS if name in names and name not in _NAMESPACES)


def _runs(level: Level) -> bool:
    order = process.Order(
        _TRIAL, "", seconds=30, memory_bytes=1 << 30, output_bytes=1_000,
        mechanisms=level.mechanisms, as_user=level.as_user,
    )  # fmt: skip
    ending, out, _ = process.run(order)
    return ending.kind == "exit" and ending.number == 0 and out.decode().strip() == "locked in"
