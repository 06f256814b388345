"""Starts JAX: memory, compiled programs, and the processes that belong to one run.

Each process of several is started with the same command and, in its environment,

JAXCHAT_COORDINATOR   HOST:PORT of process 0; the port above it is used too
JAXCHAT_PROCESSES     the number of processes
JAXCHAT_PROCESS       the number of this one, from 0

`launch/` has starters that set them. JAX's own detection of schedulers is not used: under SLURM it
gives a process one GPU only.
"""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from pathlib import Path

from jaxchat import paths
from jaxchat.config import memory
from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ConfigError, GroupError
from jaxchat.parallel.process_group import ProcessGroup, ProcessSpec, is_local
from jaxchat.signals import NOTICES

# Where one is set, the user decides; the last is the new name of the first.
MEMORY_VARIABLES = (
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_CLIENT_MEM_FRACTION",
)
# Objects made between two looks for garbage, and looks until older objects are looked at too. With
# Python's 700 a sixth of tracing a step is such looks, nearly all in vain.
GARBAGE = (50_000, 10, 10)
HEARTBEAT_SECONDS = 600  # until a process that hangs counts as lost; an exit is noticed at once


def configure_jax(mesh: MeshConfig, cache: Path | None, *, whole_gpu: bool = False) -> None:
    """Sets up JAX; call it before the first use of a device.

    `whole_gpu`: training preallocates most of a GPU's memory; any other command allocates as it
    needs it. What the user has set in the environment stays (`MEMORY_VARIABLES`). Compiled programs
    are cached, so that the next process starts faster, in the folder `cache`, if it is given and
    JAX_COMPILATION_CACHE_DIR names no other. Garbage is looked for more rarely (`GARBAGE`).
    """
    paths.set_environment(memory_settings(whole_gpu=whole_gpu), MEMORY_VARIABLES)
    # Without it NCCL aborts a collective in silence (`backend.COLLECTIVE_TIMEOUT`).
    paths.set_environment({"NCCL_DEBUG": "WARN"}, ["NCCL_DEBUG"])
    gc.set_threshold(*GARBAGE)
    import jax

    if mesh.host_devices:
        jax.config.update("jax_num_cpu_devices", mesh.host_devices)
    if cache is not None and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache))
        # also what compiles in under a second, of which a server has dozens
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A program that cannot be cached, or was cached in part, is compiled again: no harm done.
    warnings.filterwarnings("ignore", message="Error (read|writ)ing persistent compilation cache")


def configure_compiling(mesh: MeshConfig) -> None:
    """Sets up JAX to compile for devices that are not here; call it before JAX is imported.

    It runs on the CPU itself: the plugins of other devices would look for a driver.
    """
    # XLA warns of what only a device could tell it, such as the best way to sort there
    paths.set_environment({"TF_CPP_MIN_LOG_LEVEL": "2"}, ["TF_CPP_MIN_LOG_LEVEL"])
    configure_jax(mesh, None)
    import jax

    jax.config.update("jax_platforms", "cpu")


def start_jax(mesh: MeshConfig, cache: Path | None, *, quiet: bool = False) -> None:
    """Sets up and starts JAX for a command that shares a GPU; prints how much it may take.

    `quiet`: it prints nothing, for a command whose whole output is one answer.
    """
    configure_jax(mesh, cache)
    if (limit := memory_notice()) and not quiet:
        print(f"jaxchat: {limit}, as it needs it.", file=sys.stderr, flush=True)


def memory_settings(*, whole_gpu: bool) -> dict[str, str]:
    """The environment variables that say how JAX takes a GPU's memory."""
    fraction = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{1 - memory.MARGIN:g}"}
    return fraction if whole_gpu else {**fraction, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def memory_notice() -> str:
    """A sentence with the memory that JAX may take of each GPU; "" on a CPU. Starts JAX."""
    import jax

    from jaxchat.model.backend import memory_limit

    device = jax.local_devices()[0]
    if not (limit := memory_limit(device)):
        return ""
    return f"JAX may take {limit / 1e9:.1f} GB of each {device.device_kind}"


def read_spec() -> ProcessSpec | None:
    """This process as the environment describes it; None if it is alone. Raises ConfigError."""
    coordinator, size, index = paths.process_env()
    if not (coordinator or size or index):
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ConfigError(
            f"JAXCHAT_COORDINATOR is {coordinator!r}; it must be HOST:PORT of process 0, for "
            "example node1:7600."
        )
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"JAXCHAT_PROCESSES is {size!r}; it must be the number of processes.")
    if not index.isdecimal() or int(index) >= int(size):
        raise ConfigError(
            f"JAXCHAT_PROCESS is {index!r}; it must be this process's number, 0 to {int(size) - 1}."
        )
    return (
        ProcessSpec(host.strip("[]"), int(port), int(size), int(index)) if int(size) > 1 else None
    )


def connect_devices(group: ProcessGroup) -> None:
    """Starts `jax.distributed` for the processes of a group, before the first use of a device.

    Raises GroupError where the devices do not reach each other.
    """
    spec = read_spec()
    if spec is None:  # then the group is of one process
        return
    import jax

    address = f"{spec.host}:{spec.port}"
    jax.distributed.initialize(
        address, spec.size, spec.index,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        coordinator_bind_address=address if is_local(spec.host) else None,
    )  # fmt: skip
    for number in NOTICES:  # `initialize` has put a handler of its own over ours
        signal.signal(number, signal.getsignal(number))
    _add_up(group)


def _add_up(group: ProcessGroup) -> None:
    """One sum over all devices. Raises GroupError when they do not reach each other.

    It is done here, where all processes are at the same point: on a CPU they have 30 seconds to
    connect, and later one may compile for longer than that while another waits.
    """
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    ones = np.ones(jax.local_device_count(), np.int32)
    array = jax.make_array_from_process_local_data(split, ones, (jax.device_count(),))
    add = jax.jit(lambda x: x.sum(dtype=np.int32), out_shardings=whole).lower(array).compile()
    group.gather(None)  # all have compiled it
    try:
        total = int(add(array))
    except jax.errors.JaxRuntimeError as error:
        raise GroupError(
            f"the devices of the {group.size} processes do not reach each other "
            f"({str(error).splitlines()[0]}); see that their machines' network lets them."
        ) from error
    assert total == jax.device_count()
