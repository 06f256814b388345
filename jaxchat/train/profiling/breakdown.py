"""Breakdown of the time of traced steps: a pure function of events and HLO.

Operations run at once, on the threads of a CPU or the streams of a GPU, so their times add up to
more than the clock's. Two figures are separate: an operation's *share* of the clock (while n run,
each has 1/n of the time), which adds up to the whole, and its *busy* time, the sum of its
executions from start to end. Moments when nothing runs are gaps: within a step, or between steps,
where the device waits for the host.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxchat.train.profiling.classes import CLASSES, OTHER, Operation, Operations
from jaxchat.train.profiling.trace import Event

Span = tuple[float, float]


@dataclass(frozen=True)
class OperationTime:
    """One operation over all traced steps; nanoseconds."""

    operation: Operation
    share: float  # of the clock
    busy: float  # from start to end, summed
    count: int


@dataclass(frozen=True)
class Breakdown:
    """The time from the start of the first traced step to the end of the last; nanoseconds."""

    module: str
    steps: tuple[float, ...]  # each step's time on the device
    total: float
    operations: tuple[OperationTime, ...]  # largest share first
    within: float  # nothing runs, in a step
    between: float  # nothing runs, between steps

    @property
    def step(self) -> float:
        """A step's mean time by the clock, gaps between steps included."""
        return self.total / len(self.steps)

    @property
    def flops(self) -> int:
        """Operations in matrix products, of all traced steps."""
        return sum(o.operation.flops * o.count for o in self.operations)

    def by_class(self) -> dict[str, tuple[float, float, int]]:
        """Class -> (share, busy, FLOPs), in the order of CLASSES; classes without time left out."""
        result = {}
        for kind in CLASSES:
            mine = [o for o in self.operations if o.operation.kind == kind]
            if mine:
                flops = sum(o.operation.flops * o.count for o in mine)
                result[kind] = (sum(o.share for o in mine), sum(o.busy for o in mine), flops)
        return result


def break_down(events: Sequence[Event], operations: Operations, module: str = "") -> Breakdown:
    """Divides the time of `module`'s executions (by default the module that ran longest).

    Raises ValueError when there is no operation of it.
    """
    module = module or _longest(events)
    mine = [e for e in events if e.module == module or not e.module]
    if not mine:
        seen = ", ".join(sorted({e.module for e in events})) or "nothing"
        raise ValueError(f"the trace has no operation of {module}; it has {seen}")
    steps = _steps(mine, operations)
    first, last = steps[0][0], steps[-1][1]
    timed = [e for e in events if first <= e.start < e.stop <= last]

    segments: list[tuple[float, float, Event]] = []
    for line in {e.line for e in timed}:
        on_line = [e for e in timed if e.line == line and not operations.is_control(e.op)]
        segments.extend(_innermost(on_line))
    clock = _Clock([(start, stop) for start, stop, _ in segments])

    def name_of(event: Event) -> str:
        return event.op if event.module in (module, "") else OTHER

    shares: dict[str, float] = defaultdict(float)
    busy: dict[str, float] = defaultdict(float)
    for start, stop, event in segments:
        shares[name_of(event)] += clock.share(start, stop)
        busy[name_of(event)] += stop - start
    counts = _executions(timed, name_of)
    idle = clock.idle(first, last)
    within = sum(_overlap(gap, step) for gap in idle for step in steps)
    times = [
        OperationTime(
            Operation(OTHER, OTHER) if name == OTHER else operations.find(name),
            share, busy[name], counts[name],
        )
        for name, share in shares.items()
    ]  # fmt: skip
    return Breakdown(
        module=module,
        steps=tuple(stop - start for start, stop in steps),
        total=last - first,
        operations=tuple(sorted(times, key=lambda o: -o.share)),
        within=within,
        between=sum(stop - start for start, stop in idle) - within,
    )


def _executions(timed: Sequence[Event], name_of: Callable[[Event], str]) -> dict[str, int]:
    """How often each operation ran. One of a GPU may run several kernels, one of them once."""
    kernels = Counter((name_of(event), event.kernel) for event in timed)
    counts: dict[str, int] = {}
    for (name, _), count in kernels.items():
        counts[name] = min(count, counts.get(name, count))
    return counts


def _longest(events: Sequence[Event]) -> str:
    time: dict[str, float] = defaultdict(float)
    for event in events:
        time[event.module] += event.stop - event.start
    return max(time, key=lambda module: time[module], default="")


def _steps(events: Sequence[Event], operations: Operations) -> list[Span]:
    """Start and end of each execution, in order.

    Where the trace does not say which execution any event belongs to, the n-th event of an
    operation that runs once a step belongs to the n-th step.
    """
    spans: dict[int, Span] = {}
    seen: Counter[str] = Counter()
    numbered = any(event.run is not None for event in events)
    # Same fusions share a kernel: in a command buffer, its name does not say how often each ran.
    ran = Counter(event.op for event in events if operations.is_in_entry(event.op))
    usual = Counter(ran.values()).most_common(1)[0][0] if ran else 0
    for event in sorted(events, key=lambda e: e.start):
        if event.run is not None:
            run = event.run
        elif not numbered and 0 < ran[event.op] <= usual:
            run = seen[event.op]
            seen[event.op] += 1
        else:
            continue
        start, stop = spans.get(run, (event.start, event.stop))
        spans[run] = (min(start, event.start), max(stop, event.stop))
    if not spans:  # no HLO text and no numbers: one stretch
        return [(min(e.start for e in events), max(e.stop for e in events))]
    return sorted(spans.values())


def _innermost(events: Sequence[Event]) -> Iterator[tuple[float, float, Event]]:
    """The stretches of each event of one line in which no event inside it runs."""
    open_: list[tuple[Event, float]] = []  # event, and from when its time is still unassigned

    def close(until: float) -> Iterator[tuple[float, float, Event]]:
        while open_ and open_[-1][0].stop <= until:
            event, since = open_.pop()
            if event.stop > since:
                yield since, event.stop, event
            if open_:
                open_[-1] = (open_[-1][0], max(event.stop, open_[-1][1]))

    for event in sorted(events, key=lambda e: (e.start, -e.stop)):
        yield from close(event.start)
        if open_ and event.start > open_[-1][1]:
            yield open_[-1][1], event.start, open_[-1][0]
        open_.append((event, event.start))
    yield from close(float("inf"))


class _Clock:
    """Divides the clock among stretches that overlap."""

    def __init__(self, spans: Sequence[Span]) -> None:
        marks = sorted([(a, 1) for a, _ in spans] + [(b, -1) for _, b in spans])
        self._at: dict[float, float] = {}  # time -> clock one stretch would have got until then
        self._busy: list[Span] = []
        running, given, previous, since = 0, 0.0, 0.0, 0.0
        for time, change in marks:
            if running:
                given += (time - previous) / running
            else:
                since = time
            running += change
            previous = time
            self._at[time] = given
            if not running:
                self._busy.append((since, time))

    def share(self, start: float, stop: float) -> float:
        """The clock that a stretch got."""
        return self._at[stop] - self._at[start]

    def idle(self, first: float, last: float) -> list[Span]:
        """The gaps between `first` and `last`."""
        gaps, at = [], first
        for start, stop in self._busy:
            if start > at:
                gaps.append((at, min(start, last)))
            at = max(at, stop)
        return [*gaps, (at, last)] if last > at else gaps


def _overlap(a: Span, b: Span) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
