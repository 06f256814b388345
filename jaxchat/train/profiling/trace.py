"""Reads the operations of a trace (`*.xplane.pb`), with nothing but jax.

A CPU's operations are events of the plane /host:CPU that carry the statistic `hlo_op`, on whatever
thread ran them; virtual devices share the plane and differ by `device_ordinal`. A GPU has a plane
of its own, /device:GPU:N, with a line of kernels for each stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat.errors import ArtifactError

HOST = "/host:CPU"
DEVICE = "/device:"
STREAM = "Stream #"
OPS = "XLA Ops"  # where there are no streams (a TPU, or a trace that was converted)


@dataclass(frozen=True)
class Event:
    """One execution of one operation; times in nanoseconds."""

    op: str  # the HLO instruction where the trace names it, else the kernel
    start: float
    stop: float
    line: str  # thread or stream
    module: str = ""  # the HLO module, such as jit_step
    run: int | None = None  # number of the module's execution, where the trace has it


def find_trace(path: Path) -> Path:
    """The newest `*.xplane.pb` in a folder, or the file itself. Raises ArtifactError."""
    if path.is_file():
        return path
    found = sorted(path.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime_ns)
    if not found:
        what = "holds no trace (*.xplane.pb)" if path.is_dir() else "does not exist"
        raise ArtifactError(
            f"{path} {what}; record one with --profile 10:13 on the command that trains, and give "
            "the folder that it prints."
        )
    return found[-1]


def read_events(path: Path) -> dict[str, list[Event]]:
    """Device, such as `cpu:0`, -> its operations. Raises ArtifactError for a damaged file."""
    from jax.profiler import ProfileData

    try:
        data = ProfileData.from_file(str(path))
        devices: dict[str, list[Event]] = {}
        for plane in data.planes:
            if plane.name == HOST:
                for event, ordinal in _host_events(plane):
                    devices.setdefault(f"cpu:{ordinal}", []).append(event)
            elif plane.name.startswith(DEVICE):
                name = plane.name.removeprefix(DEVICE).lower()
                devices.setdefault(name, []).extend(_device_events(plane))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is no trace that jax can read: {error}.") from error
    return {name: events for name, events in devices.items() if events}


def _host_events(plane: Any) -> Iterator[tuple[Event, int]]:
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                yield _event(event, line.name, stats), int(stats.get("device_ordinal", 0))


def _device_events(plane: Any) -> Iterator[Event]:
    lines = list(plane.lines)
    kernels = [line for line in lines if line.name.startswith(STREAM)]
    for line in kernels or [line for line in lines if line.name == OPS]:
        for event in line.events:
            yield _event(event, line.name, dict(event.stats))


def _event(event: Any, line: str, stats: dict[str, Any]) -> Event:
    run = stats.get("run_id")
    return Event(
        op=str(stats.get("hlo_op") or event.name).lstrip("%"),
        start=float(event.start_ns),
        stop=float(event.start_ns + event.duration_ns),
        line=line,
        module=str(stats.get("hlo_module", "")),
        run=None if run is None else int(run),
    )
