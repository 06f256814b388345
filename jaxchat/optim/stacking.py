"""The parameters as the optimizer sees them: the layers' matrices in stacks.

Matrices with the same logical axes (all queries, all keys and values, ...) form one stack
[N, in, out] under `h`, filled up with zeros to a multiple of the devices that share its work. A
zero matrix stays zero in Muon, so the filling changes nothing. All other parameters stay as they
are.

Barriers keep XLA from fusing the copies with the arithmetic around them, which it then does
element by element: on a CPU the optimizer took half as long again without them. On a GPU there are
none, and no copies: what reads a stack reads the matrices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxchat.parallel.mesh import logical_axes, path_name

LAYER = "h_"  # begins the names of the layers, whose parameters are all matrices
STACKS = "h"
JOINT = "-"  # between the two logical axes that name a stack


def stack_names(params: Any) -> dict[str, str]:
    """Path of every matrix -> the stack it is in, in the order of the stacks."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return {name: JOINT.join(logical_axes(name)) for name in paths if name.startswith(LAYER)}


def stack(params: Any, multiple: int = 1) -> Any:
    """Parameters (or gradients) with their matrices stacked, each stack a `multiple` long."""
    leaves = {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
    groups: dict[str, list[jax.Array]] = {}
    for name, key in stack_names(params).items():
        groups.setdefault(key, []).append(leaves[name])
    rest = {name: tree for name, tree in params.items() if not name.startswith(LAYER)}
    if not groups:
        return rest

    def join(matrices: list[jax.Array]) -> jax.Array:
        filling = [jnp.zeros_like(matrices[0])] * (-len(matrices) % multiple)
        joined: jax.Array = _apart(jnp.stack([*matrices, *filling]))
        return joined

    return {**rest, STACKS: {key: join(matrices) for key, matrices in groups.items()}}


def unstack(stacked: Any, like: Any) -> Any:
    """The inverse of `stack`, for parameters with the structure of `like`."""
    names, used = stack_names(like), dict.fromkeys(stacked.get(STACKS, {}), 0)
    rest = {name: tree for name, tree in stacked.items() if name != STACKS}
    leaves = {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(rest)[0]}
    stacked = _apart(stacked)
    for name, key in names.items():
        leaves[name] = stacked[STACKS][key][used[key]]
        used[key] += 1
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like)


def _apart(tree: Any) -> Any:
    """Behind a barrier, but on a GPU."""
    return jax.lax.platform_dependent(
        tree, cuda=lambda tree: tree, default=jax.lax.optimization_barrier
    )
