"""What several processes agree on: the highest of a number that each of them has.

By their devices, so that it needs nothing but the mesh on which they train.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchat.parallel.mesh import replicated


def highest(mesh: Mesh) -> Callable[[int], jax.Array]:
    """A function of this process's number (int32) that begins to find the highest of all.

    Collective. It returns at once, and the devices work behind what they were given before.
    """
    layout = NamedSharding(mesh, P(mesh.axis_names))
    reduce = jax.jit(lambda values: values.max(), out_shardings=replicated(mesh))

    def begin(mine: int) -> jax.Array:
        local = np.full(len(layout.addressable_devices), mine, np.int32)
        values = jax.make_array_from_process_local_data(layout, local, (mesh.size,))
        found: jax.Array = reduce(values)
        return found

    return begin


def agreed(mesh: Mesh, mine: int) -> int:
    """The highest of all processes' numbers; collective. Alone, it is this process's."""
    return mine if jax.process_count() == 1 else int(highest(mesh)(mine))
