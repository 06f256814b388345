"""Reads the operations of a trace (`*.xplane.pb`), with nothing but jax.

A CPU's operations are events of the plane /host:CPU that carry the statistic `hlo_op`, on whatever
thread ran them; virtual devices share the plane and differ by `device_ordinal`. A GPU has a plane
of its own, /device:GPU:N, with a line of kernels for each stream. A kernel's `hlo_op` is its
instruction, but where it ran in a command buffer, a CUDA graph of many kernels, it is the number of
the buffer; `order.in_order` then finds the instruction. The host's events have the launches by
`correlation_id`, in the execution of a module that made them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxchat.errors import ArtifactError

HOST = "/host:CPU"
DEVICE = "/device:"
STREAM = "Stream #"
OPS = "XLA Ops"  # where there are no streams (a TPU, or a trace that was converted)
# What a command buffer is called, by XLA and by CUDA.
_BUFFER = re.compile(r"command_buffer|cu(da)?_?graph", re.IGNORECASE)


@dataclass(frozen=True)
class Event:
    """One execution of one operation; times in nanoseconds."""

    op: str  # the HLO instruction where the trace names it, else the kernel
    start: float
    stop: float
    line: str  # thread or stream
    module: str = ""  # the HLO module, such as jit_step
    run: int | None = None  # number of the module's execution, where the trace has it
    kernel: str = ""  # of a GPU; an instruction may run several
    in_buffer: bool = False  # a kernel of a command buffer: `op` is its name


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
    """Device, such as `cpu:0`, -> its operations, a GPU's in the order in which they were launched.

    Raises ArtifactError for a file that is no trace, or a trace without operations.
    """
    from jax.profiler import ProfileData

    try:
        planes = list(ProfileData.from_file(str(path)).planes)
        runs = _runs(planes)
        devices: dict[str, list[Event]] = {}
        for plane in planes:
            if plane.name == HOST:
                for event, ordinal in _host_events(plane):
                    devices.setdefault(f"cpu:{ordinal}", []).append(event)
            elif plane.name.startswith(DEVICE):
                name = plane.name.removeprefix(DEVICE).lower()
                devices.setdefault(name, []).extend(_device_events(plane, runs))
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is no trace that jax can read: {error}.") from error
    devices = {name: events for name, events in devices.items() if events}
    _require_operations(path, [plane.name for plane in planes], devices)
    return devices


def _require_operations(path: Path, planes: list[str], devices: Mapping[str, list[Event]]) -> None:
    """Raises ArtifactError, saying what is in the trace, where no operation can be seen."""
    if not devices:
        has = f"its planes are {', '.join(planes)}" if planes else "it is empty"
        raise ArtifactError(
            f"{path} has no operation that XLA ran ({has}); give a trace that --profile recorded."
        )
    for name, events in devices.items():
        time = sum(e.stop - e.start for e in events)
        hidden = sum(e.stop - e.start for e in events if _BUFFER.match(e.op))
        if hidden > time / 2:
            raise ArtifactError(
                f"{path} has command buffers of {name} and not the kernels in them; record it "
                "again with --profile, which turns them off."
            )


def _runs(planes: list[Any]) -> dict[int, int]:
    """Correlation of a launch -> number of the module's execution that made it."""
    runs: dict[int, int] = {}
    number = 0
    for plane in planes:
        if plane.name != HOST:
            continue
        for line in plane.lines:
            stop = 0.0
            for event in sorted(line.events, key=lambda e: (e.start_ns, -e.duration_ns)):
                stats = dict(event.stats)
                if "module_name" in stats:  # GpuExecutable::ExecuteThunks, once a device
                    number, stop = number + 1, event.start_ns + event.duration_ns
                elif "correlation_id" in stats and event.start_ns < stop:
                    runs[int(stats["correlation_id"])] = number
    return runs


def _host_events(plane: Any) -> Iterator[tuple[Event, int]]:
    for line in plane.lines:
        for event in line.events:
            stats = dict(event.stats)
            if "hlo_op" in stats:
                yield _event(event, line.name, stats), int(stats.get("device_ordinal", 0))


def _device_events(plane: Any, runs: Mapping[int, int]) -> list[Event]:
    lines = list(plane.lines)
    streams = [line for line in lines if line.name.startswith(STREAM)]
    found: list[tuple[int, int, Event]] = []
    launched: dict[int, float] = {}  # correlation -> start of its first kernel
    for line in streams or [line for line in lines if line.name == OPS]:
        for event in line.events:
            stats = dict(event.stats)
            launch = int(stats.get("correlation_id", -1))
            one = _event(event, line.name, stats, event.name, runs.get(launch))
            found.append((launch, int(stats.get("cuda_graph_node_id", 0)), one))
            launched[launch] = min(one.start, launched.get(launch, one.start))
    # the nodes of a graph are numbered as XLA made them, in the order of the program
    found.sort(key=lambda f: (launched[f[0]] if f[1] else f[2].start, f[1], f[2].start))
    return [event for _, _, event in found]


def _event(
    event: Any, line: str, stats: dict[str, Any], kernel: str = "", run: int | None = None
) -> Event:
    in_buffer = bool(kernel) and ("cuda_graph_id" in stats or _is_buffer(stats))
    named = None if in_buffer else stats.get("hlo_op")
    run = stats.get("run_id", run)
    return Event(
        op=str(named or event.name).lstrip("%"),
        start=float(event.start_ns),
        stop=float(event.start_ns + event.duration_ns),
        line=line,
        module=str(stats.get("hlo_module", "")),
        run=None if run is None else int(run),
        kernel=kernel,
        in_buffer=in_buffer,
    )


def _is_buffer(stats: Mapping[str, Any]) -> bool:
    return bool(_BUFFER.match(str(stats.get("hlo_op", ""))))
