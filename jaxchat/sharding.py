"""The mesh and the rules that lay arrays out on it.

Axes of a mesh: `data` (rows of a batch), `fsdp` (rows of a batch, and parameters split over them),
`tensor` (heads and hidden units). Arrays have logical axes; `RULES` maps those to mesh axes. Nobody
else names a mesh axis.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchat.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "time": None,
    "accumulation": None,
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or those given). `data = 0` takes what the other axes leave.

    Raises ConfigError, with the numbers, when the axes do not multiply to the devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = config.data or max(1, len(devices) // rest)
    if data * rest != len(devices):
        raise ConfigError(
            f"the mesh data={data}, fsdp={config.fsdp}, tensor={config.tensor} needs {data * rest} "
            f"devices, but there are {len(devices)}; set [mesh] so that their product fits."
        )
    grid = np.asarray(devices).reshape(data, config.fsdp, config.tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array whose axes have these logical names (None: replicated)."""
    return NamedSharding(mesh, P(*(RULES[name] if name else None for name in logical)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """How many ways the rows of a batch are split."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts host arrays [accumulation, rows, ...] on the mesh, rows split over the batch axes."""
    layout = sharding(mesh, "accumulation", "batch")
    return jax.tree.map(lambda x: jax.device_put(x, layout), batch)
