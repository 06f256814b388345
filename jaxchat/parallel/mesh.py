"""The mesh and the rules that lay arrays out on it.

Axes of a mesh: `data` (rows of a batch), `fsdp` (rows of a batch, and parameters split over them),
`tensor` (heads, hidden units, vocabulary). Arrays have logical axes; `RULES` maps those to mesh
axes; no other module names what a mesh axis splits.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "time": None,
    "accumulation": None,
    "embed": ("fsdp",),
    "rows": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "gate": None,
    "matrices": ("data", "fsdp", "tensor"),  # of the optimizer's stacks
}
# The logical axes of every parameter, by its path; the first row that matches counts.
PARAMETERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"wte/embedding", ("vocab", "embed")),
    (r"lm_head/kernel", ("embed", "vocab")),
    # by heads, so that looking values up needs no communication
    (r"value_embeds_\d+/embedding", ("rows", "kv_heads")),
    (r"h_\d+/attn/c_q/kernel", ("embed", "heads")),
    (r"h_\d+/attn/c_[kv]/kernel", ("embed", "kv_heads")),
    (r"h_\d+/attn/c_proj/kernel", ("heads", "embed")),
    (r"h_\d+/attn/ve_gate/kernel", ("gate", "kv_heads")),
    (r"h_\d+/mlp/c_fc/kernel", ("embed", "mlp")),
    (r"h_\d+/mlp/c_proj/kernel", ("mlp", "embed")),
    (r"(resid|x0)_lambdas|smear_lambda|backout_lambda|smear_gate/kernel", ()),
)


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


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of a tree of dicts as `h_0/attn/c_q/kernel`."""
    return "/".join(str(key.key) for key in path)


def logical_axes(name: str) -> tuple[str, ...]:
    """The logical axes of a parameter, by its path; ValueError where no row of PARAMETERS fits."""
    for pattern, axes in PARAMETERS:
        if re.fullmatch(pattern, name):
            return axes
    raise ValueError(
        f"the parameter {name} is in no row of PARAMETERS in jaxchat/parallel/mesh.py; add its "
        "logical axes there."
    )


def spec_of(mesh: Mesh, logical: tuple[str | None, ...], shape: tuple[int, ...]) -> P:
    """The PartitionSpec of an array with these logical axes: one entry an axis.

    An axis that a mesh axis does not divide stays whole, and mesh axes of one device are left out.
    """
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(logical, shape, strict=True):
        axes = tuple(axis for axis in (RULES[name] if name else None) or () if mesh.shape[axis] > 1)
        ways = int(np.prod([mesh.shape[axis] for axis in axes]))
        entries.append(axes if axes and size % ways == 0 else None)
    return P(*entries)


def keep(spec: P, axes: Collection[str]) -> P:
    """A spec without the mesh axes that are not in `axes`."""
    return P(*(tuple(axis for axis in names if axis in axes) or None for names in axes_of(spec)))


def axes_of(spec: P) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that cut each dimension."""
    return tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec)


def param_specs(mesh: Mesh, params: Any) -> Any:
    """A tree like `params` (arrays or their shapes) of PartitionSpecs."""

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        axes = logical_axes(path_name(path))
        return spec_of(mesh, axes, leaf.shape) if axes else P()

    return jax.tree_util.tree_map_with_path(spec, params)


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """A tree like `params` (arrays or their shapes) of shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(mesh, params))


def put(tree: Any, shardings: Any) -> Any:
    """Puts whole arrays, the same on every process, on the mesh; `shardings` is one or a tree."""

    def place(x: Any, where: NamedSharding) -> Any:
        if where.is_fully_addressable or (isinstance(x, jax.Array) and x.sharding == where):
            return jax.device_put(x, where)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: place(x, shardings), tree)
    return jax.tree.map(place, tree, shardings)


def gathered(params: Any) -> Any:
    """Arrays split over a mesh, whole on each of its devices; others as they are.

    With several processes, all of them must call this.
    """

    def gather(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_replicated:
            return x
        assert isinstance(x.sharding, NamedSharding)
        return jax.device_put(x, NamedSharding(x.sharding.mesh, P()))

    return jax.tree.map(gather, params)


def batch_shards(mesh: Mesh) -> int:
    """The number of shards that the rows of a batch are split into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): of every `count` equal parts of a batch this process reads part `index`.

    Processes that hold the same rows (a tensor axis over both) have the same index. Raises
    ConfigError where the processes' parts overlap or differ in size.
    """
    shards = batch_shards(mesh)
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(shards, -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    parts = sorted({tuple(sorted(part)) for part in held.values()})
    if sum(map(len, parts)) != shards or len({len(part) for part in parts}) != 1:
        sizes = ", ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)
        raise ConfigError(
            f"the mesh {sizes} gives its {len(held)} processes the batch shards {parts}, which "
            "overlap or differ in number; set [mesh] so that each process holds whole ones."
        )
    here = tuple(sorted(held[jax.process_index()]))
    return parts.index(here), len(parts)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts host arrays [accumulation, rows, ...] on the mesh, rows split over the batch axes.

    With several processes, `batch` holds the rows of this one's `row_share`. Raises ConfigError
    where the rows do not divide.
    """
    layout, shards = sharding(mesh, "accumulation", "batch"), batch_shards(mesh)
    parts = row_share(mesh)[1]

    def place(x: Any) -> Any:
        rows = x.shape[1] * parts
        if rows % shards:
            raise ConfigError(
                f"a micro-batch of {rows} rows does not divide by the {shards} devices of the "
                f"batch axes (data={mesh.shape['data']}, fsdp={mesh.shape['fsdp']}); choose a "
                f"multiple of {shards} rows."
            )
        if parts == 1 and layout.is_fully_addressable:
            return jax.device_put(x, layout)
        shape = (x.shape[0], rows, *x.shape[2:])
        return jax.make_array_from_process_local_data(layout, np.asarray(x), shape)

    return jax.tree.map(place, batch)
