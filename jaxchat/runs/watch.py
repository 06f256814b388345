"""A live view of a run in the terminal: stages, curves, rate, time left, memory."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchat.progress import duration
from jaxchat.runs.report.curves import moving_mean
from jaxchat.runs.stages import STAGES
from jaxchat.runs.status import RunState, read_state

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

CURVES = {
    "loss": "training loss",
    "bits_per_byte": "bits per byte, held out",
    "reward": "reward",
    "entropy": "entropy",
}
HEIGHT = 7  # lines of a curve, at most
AROUND = 6  # lines above and below all curves
AROUND_CURVE = 3  # its title, its ends, and an empty line
MARGIN = 10  # columns before a curve
SMOOTHED = 0.05  # of the steps, a point of the loss is the mean of
BLANK = 0x2800  # the Unicode block of braille patterns: each character has 2 by 4 dots
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row from the top]


def watch(run: Path, *, interval: float, once: bool, sleep: Callable[[float], None]) -> None:
    """Shows the run until it stops or the user leaves; `once` shows it as it is and returns."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once or not console.is_terminal:
        console.print(view(read_state(run), console.width))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            state = read_state(run)
            live.update(view(state, console.width, console.height), refresh=True)
            if state.state != "running":
                return
            sleep(interval)


def view(state: RunState, width: int, height: int = 0) -> Group:
    """The run as it is now, for a terminal of `width` columns and `height` lines (0: any)."""
    from rich.console import Group
    from rich.text import Text

    colour = {"running": "green", "stopped": "yellow", "complete": "cyan"}[state.state]
    head = Text.assemble((state.name, "bold"), "  ", (state.state, colour), f"  {state.folder}")
    stages = Text()
    for stage in STAGES:
        mark, style = ("▸", "bold") if stage.name == state.stage else ("·", "dim")
        if stage.name in state.complete:
            mark, style = "✓", "green"
        stages.append(f"{mark} {stage.name}  ", style=style)
    lines = [head, stages, Text()]
    drawn = [name for name in CURVES if sum(name in r for r in state.records) > 1]
    gpus = gpu_memory()
    room = (height - AROUND - len(gpus)) // max(len(drawn), 1) - AROUND_CURVE if height else HEIGHT
    for name in drawn:
        lines += [*_curve(state, name, min(width, 100), max(2, min(HEIGHT, room))), Text()]
    lines.append(Text("  ".join(numbers(state))))
    return Group(*lines, *(Text(line, style="dim") for line in gpus))


def numbers(state: RunState) -> list[str]:
    """Step, rate, time left and the newest metrics, each as a few words."""
    parts = [f"step {state.progress}"] if state.records else []
    for name, label in (("loss", "loss"), ("bits_per_byte", "bits per byte"), ("reward", "reward")):
        if (value := state.last(name)) is not None:
            parts.append(f"{label} {value:.3f}")
    if state.state == "running" and state.logged == state.stage:
        if state.rate is not None:
            parts.append(f"{state.rate:.3g} steps/s")
        if state.seconds_left is not None:
            parts.append(f"{duration(state.seconds_left)} left of this stage")
    return [*parts, f"last written {duration(max(0.0, time.time() - state.changed))} ago"]


def _curve(state: RunState, name: str, width: int, height: int) -> list[Text]:
    from rich.text import Text

    records = [r for r in state.records if name in r and "step" in r]
    xs, values = [float(r["step"]) + 1 for r in records], [float(r[name]) for r in records]
    size = 1 if name == "bits_per_byte" else max(1, round(SMOOTHED * len(values)))
    ys = [y for y in moving_mean(values, size) if y is not None]
    lines, low, high = draw(xs, ys, width - MARGIN, height)
    labels = {0: f"{high:.3f}", height - 1: f"{low:.3f}"}
    first, last = f"{xs[0]:,.0f}", f"step {xs[-1]:,.0f}"
    return [
        Text(f"{'':>{MARGIN}}{state.logged}: {CURVES[name]}", style="bold"),
        *(
            Text.assemble((f"{labels.get(row, ''):>{MARGIN - 2}}  ", "dim"), (line, "cyan"))
            for row, line in enumerate(lines)
        ),
        Text(f"{'':>{MARGIN}}{first}{last:>{width - MARGIN - len(first)}}", "dim"),
    ]


def draw(
    xs: Sequence[float], ys: Sequence[float], width: int, height: int
) -> tuple[list[str], float, float]:
    """A curve as `height` lines of `width` characters, and the values at its bottom and its top.

    Values are joined by straight lines without gaps. A single value is drawn in the middle.
    """
    if len(xs) != len(ys) or not xs:
        raise ValueError(f"{len(xs)} xs and {len(ys)} ys; a curve needs as many of both, and one.")
    columns, rows = 2 * width, 4 * height
    low, high = min(ys), max(ys)
    span, reach = (high - low) or 1.0, (max(xs) - min(xs)) or 1.0
    offset = 0.5 if high == low else 0.0
    dots = [
        (
            round((x - min(xs)) / reach * (columns - 1)),
            round(((high - y) / span + offset) * (rows - 1)),
        )
        for x, y in zip(xs, ys, strict=True)
    ]
    cells = [[0] * width for _ in range(height)]
    for (column, row), (to_column, to_row) in pairwise([dots[0], *dots]):
        right, down = to_column - column, to_row - row
        count = max(abs(right), abs(down), 1)
        for number in range(count + 1):
            x, y = column + round(right * number / count), row + round(down * number / count)
            cells[y // 4][x // 2] |= DOTS[x % 2][y % 4]
    return ["".join(chr(BLANK + cell) for cell in line) for line in cells], low, high


def gpu_memory() -> list[str]:
    """A line for each GPU, by NVIDIA's own tool; none where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=index,name,memory.used,memory.total,utilization.gpu"
    command = [tool, query, "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [
        f"GPU {index} {name}: {used} of {total} MiB, {busy}% busy"
        for index, name, used, total, busy in (row for row in rows if len(row) == 5)
    ]
