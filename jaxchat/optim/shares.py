"""Shares: how parameters, gradients and the optimizer's work are cut over the devices of a mesh.

Parameters are whole on every device, or cut over `fsdp` where the mesh has that axis. Gradients are
summed once a step, straight into shares (reduce-scatter); each device keeps the optimizer's state
of its share and does its work, for Muon on whole matrices of the stacks; then the updates are put
together again (all-gather). This is ZeRO's second stage (arXiv 1910.02054), and with `fsdp` its
third, but that parameters are put together once a step instead of layer by layer.

All of `Shares` but its specs runs inside a `shard_map` that is manual over `manual_axes`. A
`tensor` axis of several devices is left to the compiler, which splits what its arrays say.
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

from jaxchat.optim.stacks import JOINT, STACKS, stack, unstack
from jaxchat.sharding import RULES, logical_axes, param_specs, path_name, spec_of

FSDP, TENSOR = "fsdp", "tensor"


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes of several devices that split a batch's rows."""
    return tuple(axis for axis in RULES["batch"] or () if mesh.shape[axis] > 1)


def manual_axes(mesh: Mesh) -> set[str]:
    """The axes whose collectives are explicit: all of them but a tensor axis of several devices."""
    return {axis for axis in mesh.axis_names if axis != TENSOR or mesh.shape[axis] == 1}


def keep(spec: P, axes: set[str]) -> P:
    """A spec without the mesh axes that are not in `axes`."""
    entries = []
    for entry in spec:
        names = (entry,) if isinstance(entry, str) else entry or ()
        entries.append(tuple(name for name in names if name in axes) or None)
    return P(*entries)


@dataclass(frozen=True)
class Cut:
    """How one array of the view (a stack, or a parameter that is in none) is shared out."""

    whole: P  # how the array is split over tensor before it is cut
    spec: P  # and how the shares lie on the mesh
    dim: int = 0
    axes: tuple[str, ...] = ()  # it is cut along `dim` over these, outermost first
    kept: tuple[str, ...] = ()  # those of them over which the parameter itself is cut, too
    moved: int | None = None  # a stack's axis along which its matrices themselves are cut over fsdp


def cut_stack(mesh: Mesh, matrix: P, axes: tuple[str, ...]) -> Cut:
    """Stacks are cut into whole matrices, over the tensor axis too."""
    stored = _fsdp_dim(matrix)
    over = tuple(axis for axis in RULES["matrices"] or () if mesh.shape[axis] > 1)
    return Cut(
        whole=P(None, *keep(matrix, {TENSOR})),
        spec=P(over or None),
        axes=axes,
        kept=() if stored is None else (FSDP,),
        moved=None if stored is None else 1 + stored,
    )


def cut_leaf(mesh: Mesh, spec: P, shape: tuple[int, ...], axes: tuple[str, ...]) -> Cut:
    """A parameter in no stack: cut along its fsdp axis, or else the first that divides."""
    ways = math.prod(mesh.shape[axis] for axis in axes)
    free = [dim for dim, entry in enumerate(spec) if not entry and shape[dim] % ways == 0]
    dim, kept = _fsdp_dim(spec), ()
    if dim is not None:
        inner = tuple(axis for axis in axes if axis != FSDP) if shape[dim] % ways == 0 else ()
        axes, kept = (FSDP, *inner), (FSDP,)
    elif axes and free:
        dim = free[0]
    else:  # too small to share: everybody does all of it
        dim, axes = 0, ()
    whole = keep(spec, {TENSOR})
    return Cut(whole, _with_axes(whole, dim, axes), dim, axes, kept)


def _with_axes(spec: P, dim: int, axes: tuple[str, ...]) -> P:
    return P(*(axes if i == dim and axes else entry for i, entry in enumerate(spec)))


def _fsdp_dim(spec: P) -> int | None:
    """The dimension that is cut over fsdp."""
    return next((dim for dim, entry in enumerate(spec) if FSDP in (entry or ())), None)


class Shares:
    """The cuts of a model's parameters (arrays or their shapes) on a mesh.

    A "view" is the optimizer's tree, of `optim.stacks`: whole, or this device's share of it.
    """

    def __init__(self, mesh: Mesh, params: Any) -> None:
        self.mesh, self.axes = mesh, batch_axes(mesh)
        self.params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self.param_specs = param_specs(mesh, params)
        self.cuts = jax.tree_util.tree_map_with_path(self._cut, jax.eval_shape(self.view, params))

    def _cut(self, path: tuple[Any, ...], leaf: Any) -> Cut:
        name = path_name(path)
        if name.startswith(f"{STACKS}/"):
            matrix = tuple(name.removeprefix(f"{STACKS}/").split(JOINT))
            return cut_stack(self.mesh, spec_of(self.mesh, matrix, leaf.shape[1:]), self.axes)
        logical = logical_axes(name) or (None,) * len(leaf.shape)
        return cut_leaf(self.mesh, spec_of(self.mesh, logical, leaf.shape), leaf.shape, self.axes)

    def view(self, params: Any) -> Any:
        """The whole view of whole parameters or gradients."""
        return stack(params, self.mesh.size)

    def state_specs(self, state: Any) -> Any:
        """Specs of an optimizer's state: what is kept of an array lies as the array's share."""
        cuts = {path_name(p): c for p, c in jax.tree_util.tree_flatten_with_path(self.cuts)[0]}

        def spec(path: tuple[Any, ...], leaf: Any) -> P:
            del leaf
            named = itertools.takewhile(lambda key: isinstance(key, DictKey), reversed(path))
            cut = cuts.get(path_name(tuple(named)[::-1]))
            return cut.spec if cut else P()

        return jax.tree_util.tree_map_with_path(spec, state)

    # ------------------------------------------------- inside a shard_map over `manual_axes`

    def gather(self, params: Any) -> Any:
        """Parameters as they lie on the mesh -> whole ones."""

        def whole(x: Array, spec: P) -> Array:
            dim = _fsdp_dim(spec)
            return x if dim is None else lax.all_gather(x, FSDP, axis=dim, tiled=True)

        return jax.tree.map(whole, params, self.param_specs)

    def reduce(self, grads: Any) -> Any:
        """Each device's own gradients -> this device's share of the view of their sum."""

        def one(x: Array, cut: Cut) -> Array:
            x = self._split(x, cut.whole)
            if uncut := tuple(axis for axis in self.axes if axis not in cut.axes):
                x = lax.psum(x, uncut)
            if cut.axes:
                x = lax.psum_scatter(x, cut.axes, scatter_dimension=cut.dim, tiled=True)
            return self._split(x, cut.spec)

        return jax.tree.map(one, self.view(grads), self.cuts)

    def own(self, params: Any) -> Any:
        """Whole parameters -> this device's share of their view."""

        def one(x: Array, cut: Cut) -> Array:
            if cut.axes:
                size = x.shape[cut.dim] // self._ways(cut.axes)
                start = lax.axis_index(cut.axes) * size
                x = lax.dynamic_slice_in_dim(x, start, size, cut.dim)
            return self._split(x, cut.spec)

        return jax.tree.map(one, self.view(params), self.cuts)

    def spread(self, view: Any) -> Any:
        """This device's share of a view -> a tree like the parameters, lying as they do."""

        def one(x: Array, cut: Cut) -> Array:
            x, axes = self._split(x, cut.whole), cut.axes
            if cut.moved is not None:
                x = lax.all_to_all(x, FSDP, split_axis=cut.moved, concat_axis=cut.dim, tiled=True)
            if axes := tuple(axis for axis in axes if axis not in cut.kept):
                x = lax.all_gather(x, axes, axis=cut.dim, tiled=True)
            return x

        return unstack(jax.tree.map(one, view, self.cuts), self.params)

    def norm(self, view: Any) -> Array:
        """The global norm of shares of a view, the same on every device."""
        squares: dict[tuple[str, ...], list[Array]] = {}
        for x, cut in zip(jax.tree.leaves(view), jax.tree.leaves(self.cuts), strict=True):
            squares.setdefault(cut.axes, []).append(jnp.sum(jnp.square(x)))
        sums = [lax.psum(sum(each), axes) if axes else sum(each) for axes, each in squares.items()]
        return jnp.sqrt(sum(sums))

    def _ways(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def _split(self, x: Array, spec: P) -> Array:
        """Tells the compiler how x lies on the tensor axis, where it is left to the compiler."""
        if self.mesh.shape[TENSOR] == 1:
            return x
        return lax.with_sharding_constraint(x, keep(spec, {TENSOR}))
