"""How well this machine can sandbox a program.

Nothing is guessed from versions: each mechanism is tried in a process of its own and seen to have
its effect, and then a program is run under all of them together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxchat.tools.sandbox import process
from jaxchat.tools.sandbox.confine import MECHANISMS

LevelName = Literal["full", "partial", "none"]

# Without one of each of these groups, nothing is run.
REQUIRED = (
    ("no_new_privs",),
    ("rlimits",),
    ("seccomp",),
    ("no capabilities",),
    ("landlock", "private root"),
)
_NAMESPACES = ("private root", "pid namespace", "net namespace", "ipc namespace")
_TRIAL = process.Program("print('sandboxed')", timeout=30, memory_bytes=1 << 30)


@dataclass(frozen=True)
class Level:
    """The mechanisms used on this machine.

    At "none" programs run only where the caller insists, under the mechanisms there are.
    """

    name: LevelName  # "full": every mechanism; "partial": all that are required; or "none"
    mechanisms: tuple[str, ...]
    as_user: bool  # the namespaces are inside a user namespace, as an unprivileged user's must be

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
    alone = _select(found.get("root", ()), _NAMESPACES)  # too little, unless the caller insists
    return next(_working(found), Level("none", alone, False))


def name_of(mechanisms: Sequence[str]) -> LevelName:
    """The name of a level that uses `mechanisms`."""
    if set(mechanisms) >= set(MECHANISMS):
        return "full"
    good = all(any(name in mechanisms for name in group) for group in REQUIRED)
    return "partial" if good else "none"


def _working(found: dict[str, list[str]]) -> Iterator[Level]:
    """Levels that a program has been run at, best first."""
    for way in sorted(found, key=lambda way: (-len(found[way]), way)):
        for left_out in ((), ("private root",), _NAMESPACES):
            used = _select(found[way], left_out)
            level = Level(name_of(used), used, way == "user")
            if level.name != "none":
                ending, out, _ = process.run(_TRIAL, level.mechanisms, level.as_user)
                if (ending[:2], out) == (("exit", 0), b"sandboxed\n"):
                    yield level


def _select(names: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in MECHANISMS if name in names and name not in left_out)
