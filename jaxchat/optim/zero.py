"""ZeRO: parameters, gradients and the optimizer's work, partitioned over the devices of a mesh.

With the gradients g_d of device d, the optimizer's state s_i and the parameters p, the owner i of a
shard computes

    g[i] = sum_d g_d[i]                      reduce-scatter, once a step
    u[i], s_i = optimizer(g[i], s_i, p[i])   for Muon on whole matrices of the stacks
    p = p + concatenate_i u[i]               all-gather

This is the second stage of ZeRO (arXiv 1910.02054): parameters are whole on every device. Where the
mesh has the axes `fsdp` and `tensor` they are partitioned over those, the third stage, but that
they are gathered once a step and not layer by layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey
from jaxtyping import Float32

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.optim.stacking import JOINT, STACKS, stack, unstack
from jaxchat.parallel.mesh import (
    RULES,
    axes_of,
    keep,
    logical_axes,
    param_specs,
    path_name,
    spec_of,
)
from jaxchat.parallel.spmd import over_tensor

FSDP, TENSOR = "fsdp", "tensor"


@dataclass(frozen=True)
class Partition:
    """The partitioning of one array of the view (a stack, or a parameter that is in none)."""

    spec: P  # how the shards lie on the mesh
    dim: int = 0
    axes: tuple[str, ...] = ()  # it is split along `dim` over these, outermost first
    stored: tuple[str, ...] = ()  # those of them over which the parameter itself is split, too
    # A stack's dimensions along which its matrices themselves are split; their pieces are exchanged
    # for whole matrices.
    fsdp: int | None = None
    tensor: int | None = None


def partition_stack(matrix: P, axes: tuple[str, ...]) -> Partition:
    """A stack of matrices of this spec is split into whole matrices, over the tensor axis too."""
    fsdp, tensor = _dim_over(FSDP, matrix), _dim_over(TENSOR, matrix)
    return Partition(
        spec=P((*axes, *(() if tensor is None else (TENSOR,))) or None),
        axes=axes,
        stored=() if fsdp is None else (FSDP,),
        fsdp=None if fsdp is None else 1 + fsdp,
        tensor=None if tensor is None else 1 + tensor,
    )


def partition_leaf(mesh: Mesh, spec: P, shape: tuple[int, ...], axes: tuple[str, ...]) -> Partition:
    """A parameter in no stack is split along its fsdp dimension, or the first that divides."""
    ways = math.prod(mesh.shape[axis] for axis in axes)
    free = [dim for dim, entry in enumerate(spec) if not entry and shape[dim] % ways == 0]
    dim, stored = _dim_over(FSDP, spec), tuple[str, ...]()
    if dim is not None:
        inner = tuple(axis for axis in axes if axis != FSDP) if shape[dim] % ways == 0 else ()
        axes, stored = (FSDP, *inner), (FSDP,)
    elif axes and free:
        dim = free[0]
    else:
        return Partition(spec)
    entries = [axes if place == dim else entry for place, entry in enumerate(spec)]
    return Partition(P(*entries), dim, axes, stored)


def _dim_over(axis: str, spec: P) -> int | None:
    """The dimension that is split over a mesh axis."""
    return next((dim for dim, axes in enumerate(axes_of(spec)) if axis in axes), None)


class ZeroLayout:
    """The partitions of a model's parameters (arrays or their shapes) on a mesh.

    A "view" is the optimizer's tree, of `optim.stacking`: whole, or this device's shard of it.
    """

    def __init__(self, mesh: Mesh, params: Any) -> None:
        self.mesh = mesh
        self.axes = tuple(axis for axis in RULES["batch"] or () if mesh.shape[axis] > 1)
        self.params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self.stored = param_specs(mesh, params)
        view = jax.eval_shape(self.view, params)
        self.partitions = jax.tree_util.tree_map_with_path(self._partition, view)

    @classmethod
    def of_model(cls, mesh: Mesh, model: ModelConfig) -> Self:
        """The layout of a model's parameters."""
        return cls(mesh, jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model)))

    def _partition(self, path: tuple[Any, ...], leaf: Any) -> Partition:
        name = path_name(path)
        if name.startswith(f"{STACKS}/"):
            matrix = tuple(name.removeprefix(f"{STACKS}/").split(JOINT))
            return partition_stack(spec_of(self.mesh, matrix, leaf.shape[1:]), self.axes)
        if not (logical := logical_axes(name)):  # scalars: every device has and updates them all
            return Partition(P())
        spec = spec_of(self.mesh, logical, leaf.shape)
        return partition_leaf(self.mesh, spec, leaf.shape, self.axes)

    @property
    def gathered(self) -> Any:
        """Specs of the parameters as a step computes with them: split over the tensor axis only."""
        return jax.tree.map(lambda spec: keep(spec, {TENSOR}), self.stored)

    def state_specs(self, state: Any) -> Any:
        """Specs of an optimizer's state: what belongs to an array lies as the array's shard."""
        flat = jax.tree_util.tree_flatten_with_path(self.partitions)[0]
        specs = {path_name(path): part.spec for path, part in flat}

        def spec(path: tuple[Any, ...], leaf: Any) -> P:
            del leaf
            named = itertools.takewhile(lambda key: isinstance(key, DictKey), reversed(path))
            found: P = specs.get(path_name(tuple(named)[::-1]), P())
            return found

        return jax.tree_util.tree_map_with_path(spec, state)

    def view(self, params: Any) -> Any:
        """The whole view of whole parameters or gradients."""
        return stack(params, self.mesh.size)

    # All below runs inside a shard_map over every axis of the mesh.

    def gather(self, params: Any) -> Any:
        """Parameters as they are stored -> as `gathered`."""

        def whole(x: Array, spec: P) -> Array:
            dim = _dim_over(FSDP, spec)
            return x if dim is None else lax.all_gather(x, FSDP, axis=dim, tiled=True)

        return jax.tree.map(whole, params, self.stored)

    def model_gather(self) -> Callable[[Any], Any]:
        """`gather` for use inside `over_rows`, whatever the tensor axis."""
        return over_tensor(self.gather, self.mesh, (self.stored,), self.gathered)

    def reduce_scatter(self, grads: Any) -> Any:
        """Every device's own gradients, as `gathered` -> shards of the view of their sum."""

        def one(x: Array, part: Partition) -> Array:
            if whole := tuple(axis for axis in self.axes if axis not in part.axes):
                x = lax.psum(x, whole)
            if part.axes:
                x = lax.psum_scatter(x, part.axes, scatter_dimension=part.dim, tiled=True)
            return _exchange(x, TENSOR, part.dim, part.tensor)

        return jax.tree.map(one, self.view(grads), self.partitions)

    def local_shard(self, params: Any) -> Any:
        """Parameters, as `gathered` -> shards of their view."""

        def one(x: Array, part: Partition) -> Array:
            if part.axes:
                size = x.shape[part.dim] // math.prod(self.mesh.shape[axis] for axis in part.axes)
                start = lax.axis_index(part.axes) * size
                x = lax.dynamic_slice_in_dim(x, start, size, part.dim)
            return _exchange(x, TENSOR, part.dim, part.tensor)

        return jax.tree.map(one, self.view(params), self.partitions)

    def all_gather_updates(self, view: Any) -> Any:
        """Shards of a view -> a tree like the parameters, as they are stored."""

        def one(x: Array, part: Partition) -> Array:
            x = _exchange(x, TENSOR, part.tensor, part.dim)
            x = _exchange(x, FSDP, part.fsdp, part.dim)
            if axes := tuple(axis for axis in part.axes if axis not in part.stored):
                x = lax.all_gather(x, axes, axis=part.dim, tiled=True)
            return x

        return unstack(jax.tree.map(one, view, self.partitions), self.params)

    def norm(self, view: Any) -> Float32[Array, ""]:
        """The global norm of a view, from its shards."""
        squares: dict[tuple[str, ...], list[Array]] = {}
        for x, part in zip(jax.tree.leaves(view), jax.tree.leaves(self.partitions), strict=True):
            axes = tuple(itertools.chain.from_iterable(axes_of(part.spec)))
            squares.setdefault(axes, []).append(jnp.sum(jnp.square(x)))
        sums = [lax.psum(sum(each), axes) if axes else sum(each) for axes, each in squares.items()]
        return jnp.sqrt(sum(sums))


def _exchange(x: Array, axis: str, split: int | None, joined: int | None) -> Array:
    """From pieces along dimension `joined` to pieces along `split`; as it is where one is None."""
    if split is None or joined is None:
        return x
    y: Array = lax.all_to_all(x, axis, split_axis=split, concat_axis=joined, tiled=True)
    return y
