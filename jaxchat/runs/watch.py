"""A live view of a run in the terminal: stages, curves, rate, time left, memory (layer 4)."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxchat.progress import duration
from jaxchat.runs.braille import draw
from jaxchat.runs.stages import STAGES
from jaxchat.runs.status import RunState, read_state

if TYPE_CHECKING:
    from rich.console import Group

CURVES = {
    "loss": "training loss",
    "bits_per_byte": "bits per byte, held out",
    "reward": "reward",
    "entropy": "entropy",
}
HEIGHT = 7  # lines of a curve, at most
AROUND = 6  # lines above and below all curves
AROUND_CURVE = 3  # its title, its ends, and an empty line
SMOOTHED = 0.05  # of the steps, a point of the loss is the mean of


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

    lines: list[Any] = [_head(state), _stages(state), Text()]
    told = [name for name in CURVES if sum(name in r for r in state.records) > 1]
    gpus = gpu_memory()
    room = (height - AROUND - len(gpus)) // max(len(told), 1) - AROUND_CURVE if height else HEIGHT
    tall = max(2, min(HEIGHT, room))
    for name in told:
        lines += [*_curve(state, name, min(width, 100), tall), Text()]
    lines.append(Text("  ".join(numbers(state))))
    lines += [Text(line, style="dim") for line in gpus]
    return Group(*lines)


def numbers(state: RunState) -> list[str]:
    """Step, rate, time left and the newest metrics, each as a few words."""
    told = []
    if state.records:
        told.append(f"step {state.progress}")
    for name, shown in (("loss", "loss"), ("bits_per_byte", "bits per byte"), ("reward", "reward")):
        if (value := state.last(name)) is not None:
            told.append(f"{shown} {value:.3f}")
    if state.state == "running" and state.logged == state.stage:
        if state.rate is not None:
            told.append(f"{state.rate:.3g} steps/s")
        if state.seconds_left is not None:
            told.append(f"{duration(state.seconds_left)} left of this stage")
    told.append(f"last written {duration(max(0.0, time.time() - state.changed))} ago")
    return told


def _head(state: RunState) -> Any:
    from rich.text import Text

    colour = {"running": "green", "stopped": "yellow", "complete": "cyan"}[state.state]
    return Text.assemble((state.name, "bold"), "  ", (state.state, colour), f"  {state.folder}")


def _stages(state: RunState) -> Any:
    from rich.text import Text

    line = Text()
    for stage in STAGES:
        if stage.name in state.complete:
            line.append(f"✓ {stage.name}  ", style="green")
        elif stage.name == state.stage:
            line.append(f"▸ {stage.name}  ", style="bold")
        else:
            line.append(f"· {stage.name}  ", style="dim")
    return line


def _curve(state: RunState, name: str, width: int, tall: int) -> list[Any]:
    from rich.text import Text

    records = state.records
    points = [(float(r["step"]) + 1, float(r[name])) for r in records if name in r and "step" in r]
    if name != "bits_per_byte":
        points = smoothed(points, max(1, round(SMOOTHED * len(points))))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = 10
    lines, low, high = draw(xs, ys, width - margin, tall)
    labels = {0: f"{high:.3f}", tall - 1: f"{low:.3f}"}
    told = [Text(f"{'':>{margin}}{state.logged}: {CURVES[name]}", style="bold")]
    told += [
        Text.assemble((f"{labels.get(row, ''):>{margin - 2}}  ", "dim"), (line, "cyan"))
        for row, line in enumerate(lines)
    ]
    ends = f"{xs[0]:,.0f}", f"step {xs[-1]:,.0f}"
    told.append(Text(f"{'':>{margin}}{ends[0]}{ends[1]:>{width - margin - len(ends[0])}}", "dim"))
    return told


def smoothed(points: Sequence[tuple[float, float]], size: int) -> list[tuple[float, float]]:
    """Means of up to `size` consecutive values, at the last of them; one for every point."""
    values = [y for _, y in points]
    means = []
    total = 0.0
    for number, value in enumerate(values):
        total += value - (values[number - size] if number >= size else 0.0)
        means.append((points[number][0], total / min(number + 1, size)))
    return means


def gpu_memory() -> list[str]:
    """A line for each GPU, by NVIDIA's own tool; none where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=index,name,memory.used,memory.total,utilization.gpu"
    try:
        told = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=5, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines()]
    return [
        f"GPU {index} {name}: {used} of {total} MiB, {busy}% busy"
        for index, name, used, total, busy in (row for row in rows if len(row) == 5)
    ]
