"""All-reduce of the stop flag, one step late: several processes stop at the same step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchat.parallel.mesh import replicated


class StopConsensus:
    """The signal that any process received; called once a step, it returns the same to all.

    A signal reaches the processes at different moments, or one of them only. The devices reduce
    every process's flag behind the step; the outcome of the step before is read, so that no process
    waits for it.
    """

    def __init__(self, mesh: Mesh, received: Callable[[], int]) -> None:
        """`received` is the number of this process's signal, or 0."""
        self._received = received
        self._size = mesh.size
        self._layout = NamedSharding(mesh, P(mesh.axis_names))
        self._highest = jax.jit(lambda flags: flags.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self) -> int:
        """The highest number of any process's signal at the call before; 0: none."""
        mine = np.full(len(self._layout.addressable_devices), self._received(), np.int32)
        flags = jax.make_array_from_process_local_data(self._layout, mine, (self._size,))
        before, self._pending = self._pending, self._highest(flags)
        return 0 if before is None else int(before)
