"""Several processes stop at the same step (layer 2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxchat.parallel.mesh import replicated


class Agreement:
    """Whether any process was asked to stop; asked once a step, it tells all of them the same.

    A signal reaches the processes at different moments, or one of them only. The devices exchange
    what each was told, behind the step; what is read is the outcome of the step before, so that
    nobody waits for it.
    """

    def __init__(self, mesh: Mesh, asked: Callable[[], int]) -> None:
        """`asked` is the number of this process's signal, or 0."""
        self._asked = asked
        self._size = mesh.size
        self._layout = NamedSharding(mesh, P(mesh.axis_names))
        self._highest = jax.jit(lambda flags: flags.max(), out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self) -> int:
        """The highest number of any process's signal at the call before; 0: go on."""
        mine = np.full(len(self._layout.addressable_devices), self._asked(), np.int32)
        flags = jax.make_array_from_process_local_data(self._layout, mine, (self._size,))
        before, self._pending = self._pending, self._highest(flags)
        return 0 if before is None else int(before)
