"""The machine as the operating system describes it: processor, cores and memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from pathlib import Path

MAX_LANES = 8  # each has a cache of its own


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
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return memory_bytes()
    found = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else memory_bytes()


def peak_memory_bytes() -> int:
    """Peak memory of this process so far."""
    # Linux's ru_maxrss also counts what the parent held when it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text("utf-8"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
