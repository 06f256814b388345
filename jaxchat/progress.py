"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Any, Self

PLAIN_INTERVAL = 10.0  # seconds between lines where no bar can be drawn


def duration(seconds: float) -> str:
    """Seconds as `7s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether the stream is a terminal; None is a stream that was closed (`<&-`)."""
    return stream is not None and not stream.closed and stream.isatty()


class Progress:
    """Shows `done` of `total` with rate and time left. Use as a context manager.

    `total = 0` means unknown. `warmup` names what happens until the first update, for example
    "compiling": it is shown until then and left out of the rate.
    """

    def __init__(
        self, title: str, total: int = 0, unit: str = "it", start: int = 0, warmup: str = ""
    ) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.start = self.done = start
        self.began = self.printed = time.monotonic()
        self.note = self.warmup = warmup
        self._bar: Any = None

    def __enter__(self) -> Self:
        if is_terminal(sys.stderr):
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(
                self.title, total=self.total or None, completed=self.start, note=self.note
            )
        elif self.warmup:
            print(f"{self.title}: {self.warmup}", file=sys.stderr, flush=True)
        return self

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )

    def update(self, done: int, note: str = "") -> None:
        """Sets how much is done; `note` is shown beside it (a loss, a rate)."""
        self.done, self.note = done, note
        if self.warmup:
            self.start, self.began, self.warmup = done, time.monotonic(), ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=f"{self.speed()} {note}".strip())
        elif time.monotonic() - self.printed >= PLAIN_INTERVAL:
            self.printed = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def advance(self, amount: int = 1) -> None:
        """Adds to what is done."""
        self.update(self.done + amount)

    def rate(self) -> float:
        """Units a second since the start, or since the end of the warm-up."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def speed(self) -> str:
        """The rate as text: `2.5 step/s`, or `12.5 s/step` where it is that slow."""
        rate = self.rate()
        if not rate:
            return ""
        if rate < 0.1:
            return f"{1 / rate:,.1f} s/{self.unit}"
        return f"{rate:,.1f} {self.unit}/s"

    def line(self) -> str:
        """The state as one line of text."""
        rate = self.rate()
        parts = [f"{self.title}: {self.done:,}"]
        if self.total:
            parts[0] += f"/{self.total:,}"
            if rate > 0:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *filter(None, (self.speed(), self.note))])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
