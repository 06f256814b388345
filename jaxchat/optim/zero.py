"""Shares: how parameters, gradients and the optimizer's work are cut over the devices of a mesh.

Parameters are whole on every device, or cut over `fsdp` and `tensor` where the mesh has those axes.
Gradients are summed once a step, straight into shares (reduce-scatter); each device keeps the
optimizer's state of its share and does its work, for Muon on whole matrices of the stacks; then the
updates are put together again (all-gather). This is ZeRO's second stage (arXiv 1910.02054), and
with `fsdp` its third, but that parameters are put together once a step and not layer by layer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey

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

FSDP, TENSOR = "fsdp", "tensor"


@dataclass(frozen=True)
class Cut:
    """How one array of the view (a stack, or a parameter that is in none) is shared out."""

    spec: P  # how the shares lie on the mesh
    dim: int = 0
    axes: tuple[str, ...] = ()  # it is cut along `dim` over these, outermost first
    kept: tuple[str, ...] = ()  # those of them over which the parameter itself is cut, too
    # A stack's dimensions along which its matrices themselves are cut; their pieces are exchanged
    # for whole matrices.
    fsdp: int | None = None
    tensor: int | None = None


def cut_stack(mesh: Mesh, matrix: P, axes: tuple[str, ...]) -> Cut:
    """A stack of matrices of this spec is cut into whole matrices, over the tensor axis too."""
    fsdp, tensor = _dim_over(FSDP, matrix), _dim_over(TENSOR, matrix)
    return Cut(
        spec=P((*axes, *(() if tensor is None else (TENSOR,))) or None),
        axes=axes,
        kept=() if fsdp is None else (FSDP,),
        fsdp=None if fsdp is None else 1 + fsdp,
        tensor=None if tensor is None else 1 + tensor,
    )


def cut_leaf(mesh: Mesh, spec: P, shape: tuple[int, ...], axes: tuple[str, ...]) -> Cut:
    """A parameter in no stack is cut along its fsdp dimension, or else the first that divides."""
    ways = math.prod(mesh.shape[axis] for axis in axes)
    free = [dim for dim, entry in enumerate(spec) if not entry and shape[dim] % ways == 0]
    dim, kept = _dim_over(FSDP, spec), tuple[str, ...]()
    if dim is not None:
        inner = tuple(axis for axis in axes if axis != FSDP) if shape[dim] % ways == 0 else ()
        axes, kept = (FSDP, *inner), (FSDP,)
    elif axes and free:
        dim = free[0]
    else:
        return Cut(spec)
    entries = [axes if place == dim else entry for place, entry in enumerate(spec)]
    return Cut(P(*entries), dim, axes, kept)


def _dim_over(axis: str, spec: P) -> int | None:
    """The dimension that is cut over a mesh axis."""
    return next((dim for dim, axes in enumerate(axes_of(spec)) if axis in axes), None)


class Shares:
    """The cuts of a model's parameters (arrays or their shapes) on a mesh.

    A "view" is the optimizer's tree, of `optim.stacks`: whole, or this device's share of it.
    """

    def __init__(self, mesh: Mesh, params: Any) -> None:
        self.mesh = mesh
        self.axes = tuple(axis for axis in RULES["batch"] or () if mesh.shape[axis] > 1)
        self.params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self.stored = param_specs(mesh, params)
        self.cuts = jax.tree_util.tree_map_with_path(self._cut, jax.eval_shape(self.view, params))

    def _cut(self, path: tuple[Any, ...], leaf: Any) -> Cut:
        name = path_name(path)
        if name.startswith(f"{STACKS}/"):
            matrix = tuple(name.removeprefix(f"{STACKS}/").split(JOINT))
            return cut_stack(self.mesh, spec_of(self.mesh, matrix, leaf.shape[1:]), self.axes)
        if not (logical := logical_axes(name)):  # scalars: everybody keeps and does all of them
            return Cut(P())
        return cut_leaf(self.mesh, spec_of(self.mesh, logical, leaf.shape), leaf.shape, self.axes)

    @property
    def gathered(self) -> Any:
        """Specs of the parameters as a step computes with them: cut over the tensor axis only."""
        return jax.tree.map(lambda spec: keep(spec, {TENSOR}), self.stored)

    def state_specs(self, state: Any) -> Any:
        """Specs of an optimizer's state: what is kept of an array lies as the array's share."""
        cuts = {path_name(p): c for p, c in jax.tree_util.tree_flatten_with_path(self.cuts)[0]}

        def spec(path: tuple[Any, ...], leaf: Any) -> P:
            del leaf
            named = itertools.takewhile(lambda key: isinstance(key, DictKey), reversed(path))
            cut = cuts.get(path_name(tuple(named)[::-1]))
            return cut.spec if cut else P()

        return jax.tree_util.tree_map_with_path(spec, state)

    def view(self, params: Any) -> Any:
        """The whole view of whole parameters or gradients."""
        return stack(params, self.mesh.size)

    # What follows runs inside a shard_map over every axis of the mesh.

    def gather(self, params: Any) -> Any:
        """Parameters as they are stored -> as `gathered`."""

        def whole(x: Array, spec: P) -> Array:
            dim = _dim_over(FSDP, spec)
            return x if dim is None else lax.all_gather(x, FSDP, axis=dim, tiled=True)

        return jax.tree.map(whole, params, self.stored)

    def reduce(self, grads: Any) -> Any:
        """Every device's own gradients, as `gathered` -> shares of the view of their sum."""

        def one(x: Array, cut: Cut) -> Array:
            if uncut := tuple(axis for axis in self.axes if axis not in cut.axes):
                x = lax.psum(x, uncut)
            if cut.axes:
                x = lax.psum_scatter(x, cut.axes, scatter_dimension=cut.dim, tiled=True)
            return _exchange(x, TENSOR, cut.dim, cut.tensor)

        return jax.tree.map(one, self.view(grads), self.cuts)

    def own(self, params: Any) -> Any:
        """Parameters, as `gathered` -> shares of their view."""

        def one(x: Array, cut: Cut) -> Array:
            if cut.axes:
                size = x.shape[cut.dim] // math.prod(self.mesh.shape[axis] for axis in cut.axes)
                start = lax.axis_index(cut.axes) * size
                x = lax.dynamic_slice_in_dim(x, start, size, cut.dim)
            return _exchange(x, TENSOR, cut.dim, cut.tensor)

        return jax.tree.map(one, self.view(params), self.cuts)

    def spread(self, view: Any) -> Any:
        """Shares of a view -> a tree like the parameters, as they are stored."""

        def one(x: Array, cut: Cut) -> Array:
            x = _exchange(x, TENSOR, cut.tensor, cut.dim)
            x = _exchange(x, FSDP, cut.fsdp, cut.dim)
            if axes := tuple(axis for axis in cut.axes if axis not in cut.kept):
                x = lax.all_gather(x, axes, axis=cut.dim, tiled=True)
            return x

        return unstack(jax.tree.map(one, view, self.cuts), self.params)

    def norm(self, view: Any) -> Array:
        """The global norm of a view, from its shares."""
        squares: dict[tuple[str, ...], list[Array]] = {}
        for x, cut in zip(jax.tree.leaves(view), jax.tree.leaves(self.cuts), strict=True):
            axes = tuple(itertools.chain.from_iterable(axes_of(cut.spec)))
            squares.setdefault(axes, []).append(jnp.sum(jnp.square(x)))
        sums = [lax.psum(sum(each), axes) if axes else sum(each) for axes, each in squares.items()]
        return jnp.sqrt(sum(sums))


def _exchange(x: Array, axis: str, cut: int | None, joined: int | None) -> Array:
    """From pieces along dimension `joined` to pieces along `cut`; as it is where one is None."""
    if cut is None or joined is None:
        return x
    y: Array = lax.all_to_all(x, axis, split_axis=cut, concat_axis=joined, tiled=True)
    return y
