"""What a run was made with: Python, packages, machine and commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jaxchat
from jaxchat.config.machine import cores, memory_bytes, processor

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tiktoken")
CHECKOUT = Path(jaxchat.__file__).resolve().parent.parent


def describe() -> dict[str, Any]:
    """Python, packages, processor, memory and devices, as JSON. Starts JAX."""
    import jax

    return {
        "jaxchat": jaxchat.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of the packages that decide the results."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def git_state(folder: Path = CHECKOUT) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout in `folder`; `commit` is None where there is none."""
    nothing = {"commit": None, "dirty": None}
    try:
        # A package installed somewhere inside another project's checkout is not that project's.
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return nothing
        dirty = _git(folder, "status", "--porcelain") != ""
        return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return nothing


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
