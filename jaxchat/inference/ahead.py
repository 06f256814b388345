"""Compiles programs before they are called, side by side and without running them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxchat.config.machine import cores
from jaxchat.model.backend import backend

MOST_WORKERS = 4  # each may take some 200 MB


class Ahead:
    """Takes the place of calling a jitted function: compiles its program and returns shapes.

    Tracing and lowering hold Python's lock, compiling does not: the caller traces the next program
    while a few threads compile the last ones. A later call with the same shapes finds the program.
    """

    def __init__(self, device: jax.Device) -> None:
        """On a GPU one program at a time is compiled: XLA times kernels while it compiles."""
        workers = min(cores(), MOST_WORKERS) if backend(device.platform).shares_host else 1
        self._pool = ThreadPoolExecutor(workers, "compiler")
        self._most = workers + 1  # that are traced but not compiled yet
        self._sharding = SingleDeviceSharding(device)
        self._known: set[Any] = set()
        self._pending: set[Future[Any]] = set()

    def close(self) -> None:
        """Waits for what is being compiled, and drops the rest."""
        self._pool.shutdown(cancel_futures=True)

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """What function(*args, **kwargs) returns, as shapes; what it is given may be shapes, too.

        Raises what compiling an earlier program has raised.
        """
        traced = function.trace(*args, **kwargs)
        leaves, tree = jax.tree.flatten((args, kwargs))
        key = (
            id(function),
            tree,
            *((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves),
        )
        if key not in self._known:
            self._known.add(key)
            self._pending.add(self._pool.submit(traced.lower().compile))
        return self.placed(traced.out_info)

    def placed(self, shapes: Any) -> Any:
        """Shapes as those of arrays on the device."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding), shapes
        )

    def make_room(self) -> None:
        """Waits until few programs wait to be compiled. Raises what compiling has raised."""
        self._wait(lambda: len(self._pending) >= self._most)

    def finish(self) -> None:
        """Waits until all programs are compiled. Raises what compiling has raised."""
        self._wait(lambda: bool(self._pending))

    def _wait(self, still: Callable[[], bool]) -> None:
        while still():
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
