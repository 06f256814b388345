"""Kills the process that imports it, at a moment that was chosen beforehand.

Python imports a module of this name by itself, in every process that has its folder in PYTHONPATH:
no line of what is tested knows of it. The moments are events that Python tells its audit hooks of
(a rename, a folder made, a file opened) before they happen. The environment says which:

    CRASH_HOME    only paths below it count
    CRASH_LOG     every event is written to this file, one line each, for a harness to choose from
    CRASH_PLAN    JSON, a list of {"event", "path", "count", "delay", "number"}: the process gets
                  the signal of that number `delay` seconds after the event of that name and path
                  happens for the `count`-th time. The event "start" is the import of this module.
    CRASH_REPORT    a file that then tells which it was
"""

import json
import os
import re
import signal
import sys
import threading
import time

EVENTS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "open"}
WRITES = os.O_WRONLY | os.O_RDWR
# what the system draws: names of temporary files, Orbax's of what is not whole, hashes
DRAWN = re.compile(r"(?<=\.)[a-z0-9_]{8}(?=\.tmp)|(?<=/)[0-9a-f]{16,}(?=/|$)|\d{16,}")


def describe(home: str, event: str, args: tuple[object, ...]) -> str | None:
    """The path of an event without what is drawn at random; None for one that does not count."""
    if event not in EVENTS or not args or not isinstance(args[0], (str, bytes, os.PathLike)):
        return None
    if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
        return None
    path = os.fsdecode(args[0])
    if event == "os.rename":  # what it becomes tells more
        path = os.fsdecode(args[1])  # type: ignore[arg-type]
    if not path.startswith(home + os.sep) or path.startswith(os.path.join(home, "xla")):
        return None
    return DRAWN.sub("*", path[len(home) :])


def die(moment: dict[str, object], report: str) -> None:
    """Now."""
    with open(report + ".half", "w", encoding="utf-8") as file:
        json.dump(moment, file)
    os.replace(report + ".half", report)
    os.kill(os.getpid(), int(str(moment["number"])))
    if moment["number"] == signal.SIGKILL:
        time.sleep(60)  # nothing more happens in this thread


class Watch:
    """Dies when a moment comes; writes to the log what happens."""

    def __init__(self, home: str, log: str, plan: list[dict[str, object]], report: str) -> None:
        self.home, self.log, self.plan, self.report = home, log, plan, report
        self.seen = [0] * len(plan)
        self.busy = threading.local()

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """Python calls it before each event, in any thread."""
        if event not in EVENTS or getattr(self.busy, "on", False):
            return
        self.busy.on = True  # what follows is no event of the run's
        try:
            if (path := describe(self.home, event, args)) is not None:
                self.happens(event, path)
        finally:
            self.busy.on = False

    def happens(self, event: str, path: str) -> None:
        """Looks whether that is a moment to die at."""
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{event} {path}\n")
        for number, moment in enumerate(self.plan):
            if (event, path) == (moment["event"], moment["path"]):
                self.seen[number] += 1
                if self.seen[number] == moment["count"]:
                    self.comes(moment)

    def comes(self, moment: dict[str, object]) -> None:
        """Dies, or will."""
        if not moment["delay"]:
            die(moment, self.report)
        timer = threading.Timer(float(str(moment["delay"])), die, (moment, self.report))
        timer.daemon = True
        timer.start()


if "CRASH_HOME" in os.environ:
    _watch = Watch(
        os.environ["CRASH_HOME"], os.environ.get("CRASH_LOG", ""),
        json.loads(os.environ.get("CRASH_PLAN", "[]")), os.environ.get("CRASH_REPORT", ""),
    )  # fmt: skip
    sys.addaudithook(_watch.hook)
    _watch.happens("start", "")
