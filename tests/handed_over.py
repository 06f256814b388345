"""What is handed to a device, watched: it must not be written to afterwards.

A jitted call returns before it has read its NumPy arguments, and `device_put` may use their memory
for good (`findings/jax-reads-arguments-late.sh`).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


class HandedOver:
    """NumPy arrays that functions were given, and what they held then."""

    def __init__(self) -> None:
        self._calls: list[list[tuple[np.ndarray, np.ndarray]]] = []

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose arguments are noted."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.note((args, kwargs))
            return function(*args, **kwargs)

        return watched

    def note(self, tree: Any) -> None:
        """Notes the arrays of a tree, as one call's."""
        arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]
        if arrays:
            self._calls.append([(array, array.copy()) for array in arrays])

    def check(self, calls: int) -> None:
        """No array was written to, and no two of at least `calls` calls share memory."""
        assert len(self._calls) >= calls, f"only {len(self._calls)} calls had arrays"
        for array, before in itertools.chain(*self._calls):
            np.testing.assert_array_equal(array, before, "it was written to afterwards")
        for one, two in itertools.combinations(self._calls, 2):
            for (a, _), (b, _) in itertools.product(one, two):
                assert not np.shares_memory(a, b), "two calls were given the same memory"
