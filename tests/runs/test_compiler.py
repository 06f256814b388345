"""Programs that are compiled while an earlier stage trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from jaxchat.runs.compiler import Compiler, Program

SECONDS = 10


class Lowered:
    """What a stage lowers; `compile` notes it, once it may."""

    def __init__(self, name: str, compiled: list[str], may: threading.Event) -> None:
        self.name, self.compiled, self.may = name, compiled, may
        self.begun = threading.Event()

    def compile(self) -> None:
        self.begun.set()
        assert self.may.wait(SECONDS)
        self.compiled.append(self.name)


def test_a_stage_waits_for_what_is_being_compiled_for_it_alone() -> None:
    compiled: list[str] = []
    may = threading.Event()
    first, second, other = (Lowered(name, compiled, may) for name in ("1", "2", "3"))
    compiler = Compiler([("mid", lambda: first), ("mid", lambda: second), ("rl", lambda: other)])
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

    def fails() -> Any:
        raise ValueError("no such rows")

    programs: list[Program] = [("mid", fails), ("sft", lambda: Lowered("2", compiled, may))]
    compiler = Compiler(programs)
    compiler._thread.join(SECONDS)
    assert compiled == ["2"]
    compiler.take("mid")
    compiler.close()


def test_closing_leaves_out_what_was_not_begun() -> None:
    compiled: list[str] = []
    may = threading.Event()
    first, second = Lowered("1", compiled, may), Lowered("2", compiled, may)
    lower: Callable[[], Any] = lambda: second  # noqa: E731
    compiler = Compiler([("mid", lambda: first), ("sft", lower)])
    assert first.begun.wait(SECONDS)
    threading.Timer(0.05, may.set).start()
    compiler.close()
    assert compiled == ["1"]
