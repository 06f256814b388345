"""Programs that are compiled while an earlier stage trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jaxchat.runs.compiler import Compiler, Program

SECONDS = 10


class Compiles:
    """What compiles a stage's program: it notes it, once it may."""

    def __init__(self, name: str, compiled: list[str], may: threading.Event) -> None:
        self.name, self.compiled, self.may = name, compiled, may
        self.begun = threading.Event()

    def __call__(self, stopped: Callable[[], bool]) -> None:
        self.begun.set()
        assert self.may.wait(SECONDS)
        self.compiled.append(self.name)


def test_a_stage_waits_for_what_is_being_compiled_for_it_alone() -> None:
    compiled: list[str] = []
    may = threading.Event()
    first, second, other = (Compiles(name, compiled, may) for name in ("1", "2", "3"))
    compiler = Compiler([("mid", first), ("mid", second), ("rl", other)])
    assert first.begun.wait(SECONDS)
    threading.Timer(0.05, may.set).start()
    compiler.take("sft")  # nothing is compiled for it
    assert not compiled
    compiler.take("mid")
    assert "1" in compiled
    assert "2" not in compiled
    compiler.close()
    assert set(compiled) <= {"1", "3"}


def test_what_fails_is_left_to_its_stage() -> None:
    compiled: list[str] = []
    may = threading.Event()
    may.set()

    def fails(stopped: Callable[[], bool]) -> None:
        raise ValueError("no such rows")

    programs: list[Program] = [("mid", fails), ("sft", Compiles("2", compiled, may))]
    compiler = Compiler(programs)
    compiler._thread.join(SECONDS)
    assert compiled == ["2"]
    compiler.take("mid")
    compiler.close()


def test_closing_leaves_out_what_was_not_begun() -> None:
    compiled: list[str] = []
    may = threading.Event()
    first, second = Compiles("1", compiled, may), Compiles("2", compiled, may)
    compiler = Compiler([("mid", first), ("sft", second)])
    assert first.begun.wait(SECONDS)
    threading.Timer(0.05, may.set).start()
    compiler.close()
    assert compiled == ["1"]


def test_a_stage_stops_what_is_compiled_for_it_and_no_other() -> None:
    stages: list[str] = []
    begun = threading.Event()

    def many(stopped: Callable[[], bool]) -> None:
        begun.set()
        ends = time.monotonic() + SECONDS
        while not stopped() and time.monotonic() < ends:
            threading.Event().wait(0.01)
        stages.append("eval" if stopped() else "eval, which nobody stopped")

    def one(stopped: Callable[[], bool]) -> None:
        assert not stopped()
        stages.append("rl")

    compiler = Compiler([("eval", many), ("rl", one)])
    assert begun.wait(SECONDS)
    compiler.take("mid")
    assert not stages
    compiler.take("eval")
    compiler._thread.join(SECONDS)
    assert stages == ["eval", "rl"]
