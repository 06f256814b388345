"""A step cut by hand over the mesh: `shard_map` over rows, and over heads in attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import ModelConfig, check_heads
from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import Compute
from jaxchat.parallel.mesh import RULES, keep, sharding

Function = TypeVar("Function", bound=Callable[..., Any])


def manual_axes(mesh: Mesh) -> set[str]:
    """The axes over which a step is cut by hand: all but a tensor axis of several devices.

    That one is left to the compiler, which follows the parameters' shardings through the model.
    """
    return {axis for axis in mesh.axis_names if axis != "tensor" or mesh.shape[axis] == 1}


def over_rows(function: Any, mesh: Mesh, in_specs: Any, out_specs: Any, *further: P) -> Any:
    """A `shard_map` of function(state, batch [A, B, ...]) over `manual_axes`: rows are split.

    The specs, of the state, of what is returned and of `further` arguments, are those for the
    whole mesh.
    """
    return _shard_map(
        function,
        manual_axes(mesh),
        (in_specs, sharding(mesh, "accumulation", "batch").spec, *further),
        out_specs,
        mesh,
    )


def over_tensor(function: Function, mesh: Mesh, in_specs: Any, out_specs: Any) -> Function:
    """Inside `over_rows`: a `shard_map` over the tensor axis, too, where collectives need one."""
    if "tensor" in manual_axes(mesh):
        return function
    split: Function = _shard_map(function, {"tensor"}, in_specs, out_specs)
    return split


def _shard_map(
    function: Any, axes: set[str], in_specs: Any, out_specs: Any, mesh: Mesh | None = None
) -> Any:
    cut = functools.partial(jax.tree.map, lambda spec: keep(spec, axes))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=cut(in_specs),
        out_specs=cut(out_specs),
        axis_names=axes,
        check_vma=False,
    )


def mesh_compute(mesh: Mesh, model: ModelConfig, compute: Compute) -> Compute:
    """`compute` with attention by heads where a tensor axis splits them.

    Raises ConfigError where it cannot split them.
    """
    check_heads(model, mesh.shape["tensor"])
    if mesh.shape["tensor"] == 1:
        return compute

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int) -> jax.Array:
        heads = P(None, None, RULES["heads"])
        local = functools.partial(causal_attention, window=window, implementation=compute.attention)
        return over_tensor(local, mesh, (heads, heads, heads), heads)(q, k, v)

    return replace(compute, attention=attention)
