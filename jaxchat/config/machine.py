"""The machine as the operating system describes it, and the peaks of devices by their kind."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LANES = 8  # each has a cache of its own
# Words of a device's name, FLOP/s of dense bf16 matrix products and bytes a second of the memory,
# from the vendors' data sheets (without sparsity), a TPU's of a chip, which is one device. The
# first whose words are in the name counts: "TPU v5 lite" is a v5e, "TPU v5" a v5p.
PEAKS = (
    (("A100", "40GB"), 312e12, 1.555e12),
    (("A100",), 312e12, 2.039e12),
    (("GH200",), 989e12, 4.0e12),
    (("H100", "PCIe"), 756e12, 2.0e12),
    (("H100",), 989e12, 3.35e12),
    (("H200",), 989e12, 4.8e12),
    (("B200",), 2250e12, 8.0e12),
    (("TPU", "v6", "lite"), 918e12, 1.638e12),
    (("TPU", "v6e"), 918e12, 1.638e12),
    (("TPU", "v5", "lite"), 197e12, 0.819e12),
    (("TPU", "v5e"), 197e12, 0.819e12),
    (("TPU", "v5p"), 459e12, 2.765e12),
    (("TPU", "v5"), 459e12, 2.765e12),
    (("TPU", "v4", "lite"), 138e12, 0.614e12),
    (("TPU", "v4"), 275e12, 1.2e12),
)


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Collects no garbage meanwhile: imports and tracing make little, and are a sixth faster.

    What is there in the end is left out of later collections.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lanes() -> int:
    """Engines side by side on a CPU: one more than cores, as one of them waits for the host."""
    return min(cores(), MAX_LANES - 1) + 1


def memory_bytes() -> int:
    """The machine's memory; 0 where it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def free_memory_bytes() -> int:
    """Memory that a process may still take; where it is unknown, all there is."""
    return _of_proc("meminfo", "MemAvailable") or memory_bytes()


def _of_proc(file: str, name: str) -> int:
    """Bytes that an entry of a file of Linux's /proc has; 0 where there is none."""
    with contextlib.suppress(OSError):
        text = Path("/proc", file).read_text(encoding="utf-8")
        if found := re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE):
            return int(found[1]) * 1024
    return 0


def peak_memory_bytes() -> int:
    """Peak memory of this process so far."""
    # Linux's ru_maxrss also counts what the parent held when it started this process.
    if peak := _of_proc("self/status", "VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peaks(device_kind: str) -> tuple[float | None, float | None]:
    words = set(device_kind.replace("-", " ").split())
    found = ((flops, memory) for names, flops, memory in PEAKS if words.issuperset(names))
    return next(found, (None, None))


def bf16_peak(device_kind: str) -> float | None:
    """FLOP/s of one device as jax names it, such as `NVIDIA H100 80GB HBM3`; None if unknown."""
    return _peaks(device_kind)[0]


def memory_bandwidth(device_kind: str) -> float | None:
    """Bytes a second of one device as jax names it; None if unknown."""
    return _peaks(device_kind)[1]
