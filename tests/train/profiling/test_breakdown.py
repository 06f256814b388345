"""Time is divided so that it adds up to the clock's; the cases are small enough to do by hand."""

from dataclasses import replace

import pytest

from jaxchat.train.profiling.breakdown import Breakdown, break_down
from jaxchat.train.profiling.classes import OTHER, Operations
from jaxchat.train.profiling.hlo import NO_MODULE
from jaxchat.train.profiling.trace import Event


def event(op: str, start: float, stop: float, line: str = "a", run: int | None = 0) -> Event:
    return Event(op, start, stop, line, "jit_step", run)


def divide(*events: Event) -> tuple[Breakdown, dict[str, tuple[float, float, int]]]:
    """The breakdown, and share, busy time and count of each operation."""
    result = break_down(events, Operations(NO_MODULE), "jit_step")
    shares = sum(o.share for o in result.operations)
    assert shares + result.within + result.between == pytest.approx(result.total)
    return result, {o.operation.name: (o.share, o.busy, o.count) for o in result.operations}


def test_operations_at_once_share_the_clock() -> None:
    result, times = divide(event("x", 0, 10), event("y", 4, 10, "b"), event("z", 4, 6, "c"))
    # alone until 4, one of three until 6, one of two until 10
    assert times["x"] == (pytest.approx(4 + 2 / 3 + 2), 10, 1)
    assert times["y"] == (pytest.approx(2 / 3 + 2), 6, 1)
    assert times["z"] == (pytest.approx(2 / 3), 2, 1)
    assert (result.total, result.within, result.between) == (10, 0, 0)


def test_an_operation_inside_another_takes_its_time_from_it() -> None:
    _, times = divide(event("outer", 0, 10), event("inner", 2, 5), event("inner", 6, 7))
    assert times == {"outer": (6, 6, 1), "inner": (4, 4, 2)}


def test_loops_are_not_work() -> None:
    result, times = divide(event("while.3", 0, 10), event("x", 2, 5), event("x", 6, 8))
    assert times == {"x": (5, 5, 2)}
    # what a loop does between its operations is a gap
    assert (result.total, result.within) == (10, 5)


def test_gaps_within_steps_and_between_them_are_separate() -> None:
    result, _ = divide(
        event("x", 0, 3), event("y", 5, 6), event("x", 10, 13, run=1), event("y", 14, 16, run=1)
    )
    assert result.steps == (6, 6)
    assert (result.total, result.within, result.between) == (16, 2 + 1, 4)
    assert result.step == 8


def test_other_programs_between_the_steps_are_named_as_such() -> None:
    copied = replace(event("x", 5, 7), module="jit_copy", run=4)
    result, times = divide(event("x", 0, 4), copied, event("x", 8, 12, run=1))
    assert times == {"x": (8, 8, 2), OTHER: (2, 2, 1)}
    assert result.between == 2
    assert result.by_class()[OTHER] == (2, 2, 0)


def test_what_ran_before_and_after_the_steps_does_not_count() -> None:
    before = replace(event("x", 0, 50), module="jit_eval", run=3)
    result, times = divide(before, event("x", 60, 70), replace(before, start=90, stop=99))
    assert times == {"x": (10, 10, 1)}
    assert result.total == 10


def test_the_module_that_ran_longest_is_the_step() -> None:
    short = replace(event("y", 0, 1), module="jit_convert")
    assert break_down([short, event("x", 2, 9)], Operations(NO_MODULE)).module == "jit_step"


def test_a_trace_without_the_step_says_what_it_has() -> None:
    with pytest.raises(ValueError, match="no operation of jit_train; it has jit_step"):
        break_down([event("x", 0, 1)], Operations(NO_MODULE), "jit_train")
