"""The first step of a session shows whether a device's memory suffices; later ones take as much."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxchat.model.backend import backend
from jaxchat.parallel.consensus import agreed
from jaxchat.parallel.mesh import batch_shards
from jaxchat.train.recomputed import recomputation

Result = tuple[Any, Any]  # of a step: the state and the metrics
WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")  # of XLA's many


def is_exhausted(error: Exception) -> bool:
    """Whether XLA found no memory; a full disk may be called RESOURCE_EXHAUSTED, too."""
    text = str(error)
    return any(words in text for words in WORDS) and os.strerror(errno.ENOSPC) not in text


class Exhausted(Exception):
    """The first step found no memory, on every process alike; its state may be gone.

    `batch` [A, B, T] are the sizes of its batch: A micro-batches of B rows over all devices, of T
    tokens each.
    """

    def __init__(self, text: str, batch: tuple[int, int, int]) -> None:
        super().__init__(text)
        self.batch = batch


class FirstStep:
    """Raises Exhausted where the first step of a session finds no memory. Take steps inside:

    `with first_step(state, batch) as awaited: state, metrics = awaited(step(state, batch))`.
    Where the first one's program computes products twice to have enough, it says so.
    """

    def __init__(self, jitted: Any, mesh: Mesh, stage: str = "") -> None:
        """`jitted` is the step that will be taken, perhaps recorded meanwhile."""
        self._jitted, self._mesh, self._stage, self._fits = jitted, mesh, stage, False
        self._program: Any = None  # the first step, where it was compiled before it is taken

    def __call__(
        self, state: Any, batch: Any
    ) -> contextlib.AbstractContextManager[Callable[[Result], Result]]:
        """A block for the step on `batch`; of later steps it does nothing."""
        return contextlib.nullcontext(_unchanged) if self._fits else self._tried(state, batch)

    @contextlib.contextmanager
    def _tried(self, state: Any, batch: Any) -> Iterator[Callable[[Result], Result]]:
        accumulation, rows, tokens = batch["tokens"].shape
        sizes = (accumulation, rows, tokens - 1)
        if jax.process_count() > 1:
            # Of several processes none may be left waiting in a collective for one that ran out:
            # each asks for the step's memory before any of them begins it.
            found = self._reserve(state, batch)
            if agreed(self._mesh, int(found is not None)):
                raise Exhausted(found or "another process ran out of memory", sizes)
            yield _unchanged
        else:
            with _exhausted_as(sizes):
                if not backend(self._mesh.devices.flat[0].platform).shares_host:
                    self._compile(state, batch)
                yield _finished  # it may be dispatched first, and fail then
        self._say_recomputed(sizes)
        self._fits = True

    def _compile(self, state: Any, batch: Any) -> Any:
        """The compiled step, which a call then finds: nothing is compiled twice."""
        self._program = self._jitted.lower(state, batch).compile()
        return self._program

    def _say_recomputed(self, sizes: tuple[int, int, int]) -> None:
        program, self._program = self._program, None
        if program is None or jax.process_index() != 0:
            return
        accumulation, rows, _ = sizes
        rows //= batch_shards(self._mesh)
        if said := recomputation(self._stage, str(program.as_text()), rows, accumulation):
            print(said, flush=True)

    def _reserve(self, state: Any, batch: Any) -> str | None:
        """What this process's devices say where one lacks the step's memory; None where all do."""
        try:
            facts = self._compile(state, batch).memory_analysis()
            size = facts.temp_size_in_bytes if facts else 0
            blocks = [
                jnp.zeros(size // 4, jnp.float32, device=device)
                for device in self._mesh.local_devices
            ]
            jax.block_until_ready(blocks)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                raise
            return str(error)
        return None


def _finished(result: Result) -> Result:
    jax.block_until_ready(result)
    return result


def _unchanged(result: Result) -> Result:
    return result


@contextlib.contextmanager
def _exhausted_as(sizes: tuple[int, int, int]) -> Iterator[None]:
    """Raises Exhausted in place of XLA's error."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise Exhausted(str(error), sizes) from error
