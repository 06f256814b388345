"""The machine a process runs on: JAX's settings for it, and its description (layer 4)."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jaxchat
from jaxchat import paths
from jaxchat.config import memory
from jaxchat.config.machine import cores, memory_bytes, processor
from jaxchat.config.schema import MeshConfig

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tiktoken")
# Any of them says that the user decides; the last is the new name of the first.
MEMORY_VARIABLES = (
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_CLIENT_MEM_FRACTION",
)
CHECKOUT = Path(jaxchat.__file__).resolve().parent.parent


def configure_jax(mesh: MeshConfig, cache: Path | None, *, whole_gpu: bool = False) -> None:
    """Sets up JAX; call it before the first use of a device.

    `whole_gpu`: training takes most of a GPU's memory at once; any other command takes it as it
    needs it, and no more. What the user has set in the environment stays (`MEMORY_VARIABLES`).

    Compiled programs are kept in the folder `cache`, so that the next process starts faster; None
    keeps none.
    """
    paths.share_gpu(memory_settings(whole_gpu=whole_gpu), MEMORY_VARIABLES)
    import jax

    if mesh.host_devices:
        jax.config.update("jax_num_cpu_devices", mesh.host_devices)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # A program that cannot be kept, or was kept in part, is compiled again: no harm done.
    warnings.filterwarnings("ignore", message="Error (read|writ)ing persistent compilation cache")


def start_jax(mesh: MeshConfig, cache: Path | None) -> None:
    """Sets up and starts JAX for a command that shares a GPU, and says what it may take of it."""
    configure_jax(mesh, cache)
    if told := memory_told():
        print(f"jaxchat: {told}, as it needs it.", file=sys.stderr, flush=True)


def memory_settings(*, whole_gpu: bool) -> dict[str, str]:
    """The environment variables that say how JAX takes a GPU's memory."""
    fraction = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{1 - memory.MARGIN:g}"}
    return fraction if whole_gpu else {**fraction, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def memory_told() -> str:
    """What JAX may take of each GPU, for people; "" on a CPU. Starts JAX."""
    import jax

    device = jax.local_devices()[0]
    limit = int((device.memory_stats() or {}).get("bytes_limit", 0))
    if device.platform == "cpu" or not limit:
        return ""
    return f"JAX may take {limit / 1e9:.1f} GB of each {device.device_kind}"


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
    """The versions of the packages that decide what comes out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def git_state(folder: Path = CHECKOUT) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout in `folder`; `commit` is None where there is none."""
    try:
        # A package installed somewhere inside another project's checkout is not that project's.
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return {"commit": None, "dirty": None}
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = _git(folder, "status", "--porcelain") != ""
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=5,
        check=True,
    )
    return result.stdout.strip()
