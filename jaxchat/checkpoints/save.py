"""Writes and reads checkpoints by Orbax: all that a stage needs to resume, in one atomic save."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import DictKey

from jaxchat.errors import ArtifactError, first_line
from jaxchat.optim.stacking import STACKS
from jaxchat.paths import atomic_folder, read_json, remove, sha256_file, write_json

FORMAT = "jaxchat-checkpoint-1"


class Checkpoints:
    """The newest checkpoints of a stage. Saves run in the background; `close` waits for them."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        """Keeps the newest `keep`, and those of steps that are multiples of `keep_every`."""
        # Orbax logs every save at length, and every error, which it also raises, with tracebacks.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, create=True
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._in_time():
            self._manager.close()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Raises OSError with the folder's name where Orbax has waited in vain."""
        try:
            yield
        except TimeoutError as error:  # after five minutes by the clock on the wall
            reason = "a save did not end in time: the disk hangs, or the clock was put forward"
            raise OSError(errno.ETIMEDOUT, reason, str(self.folder)) from error

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        """Starts saving; the arrays are copied first, so they may be donated afterwards.

        Raises ArtifactError where a later step is there: Orbax saves nothing then, and returns.
        """
        # Orbax does not notice every damaged file when it restores: the fingerprint does.
        described = {"format": FORMAT, "step": step, "fingerprint": fingerprint(state), **meta}
        with self._in_time():
            begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(described)
                ),
            )
        if not begun:
            raise ArtifactError(
                f"the checkpoint of step {step} was not saved, for {self.folder} has one of step "
                f"{self.latest()}; delete that, or use --force to restart the stage."
            )

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        with self._in_time():
            self._manager.wait_until_finished()

    def restore_newest(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """State and meta of the newest checkpoint that can be read; None where there is none.

        A damaged one that is newer is reported and renamed. Raises ArtifactError where none can be
        read: only the user may restart the stage.
        """
        errors: dict[int, ArtifactError] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self.restore(step, like)
            except ArtifactError as error:
                errors[step] = error
                continue
            for damaged, why in errors.items():
                aside = self.folder.parent / f"damaged-checkpoint-{damaged}"
                remove(aside)
                (self.folder / str(damaged)).rename(aside)
                self._manager.reload()
                reason = str(why).partition(";")[0]
                print(f"{reason}; it is now in {aside}, and step {step} is used.", flush=True)
            return found
        if errors:
            raise errors[max(errors)]
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state and meta saved at `step`, with the shapes and shardings of `like`.

        The mesh may be another than the one it was saved on: what fills the optimizer's stacks up
        (`optim.stacking`) is added or left out. Raises ArtifactError for a checkpoint that is
        damaged or of another model.
        """
        path = self.folder / str(step)
        unreadable = (
            f"the checkpoint {path} cannot be read (%s); delete that folder to resume from the one "
            "before, or use --force to restart the stage."
        )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            # What is not there, or has another shape, `strict=False` would fill up or cut.
            if differs := _difference(_saved_arrays(path / "state"), _arrays(like)):
                raise ValueError(f"it is of another model: {differs}")
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract, strict=False),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise ArtifactError(unreadable % first_line(error)) from error
        meta = dict(restored["meta"])
        if meta.get("format") != FORMAT:
            raise ArtifactError(
                f"the checkpoint {path} has format {meta.get('format')!r}, not {FORMAT!r}; it was "
                "made by another version: use --force to restart the stage."
            )
        if meta.get("fingerprint") != fingerprint(restored["state"]):
            changed = "its fingerprint is not the one it was saved with"
            raise ArtifactError(unreadable % f"it is damaged or of another model: {changed}")
        return restored["state"], meta


def remove_checkpoints(folder: Path, *, last: bool) -> None:
    """Removes a stage's checkpoints, with or without the `last`."""
    steps = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    for path in [folder] if last else steps[:-1]:
        remove(path)


def _saved_arrays(folder: Path) -> dict[str, str]:
    """The arrays of a checkpoint on disk: name -> type and shape, as `_arrays` has them."""
    with _checkpointer() as checkpointer:
        return _arrays(checkpointer.metadata(folder).item_metadata.tree)


def _arrays(tree: Any) -> dict[str, str]:
    """The arrays of a tree: name -> type and shape; of the optimizer's stacks, that of a matrix."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "shape"):  # else nothing is there, which Orbax notes, too
            shape = leaf.shape[1:] if _is_stack(path) else leaf.shape
            name = ".".join(str(_key(part)) for part in path)
            found[name] = f"{np.dtype(leaf.dtype)} {list(shape)}"
    return found


def _key(part: Any) -> Any:
    """What Orbax calls a part of a path: a field of a named tuple like a key of a dict."""
    return next(getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name))


def _is_stack(path: tuple[Any, ...]) -> bool:
    """Whether an array is one of the optimizer's stacks, which are filled up as the mesh wants."""
    return any(isinstance(key, DictKey) and key.key == STACKS for key in path)


def _difference(saved: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """The first array that differs, in words; "" where none does."""
    for name in sorted({*saved, *wanted}):
        old, new = saved.get(name, "missing"), wanted.get(name, "missing")
        if old != new:
            return f"{name} is {old} there and {new} here"
    return ""


def fingerprint(state: Any) -> str:
    """A hash of a state, the same on every mesh; a flipped bit always changes it.

    Computed on the devices, so no process needs to see all of the state, and in integers, so the
    order of sums does not matter. The zeros that fill the optimizer's stacks up do not count.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = jnp.asarray(leaf)
        shape = array.shape[1:] if _is_stack(path) else array.shape
        digest.update(f"{jax.tree_util.keystr(path)} {shape} {array.dtype}".encode())
        # Read at once: of several processes, programs in flight could meet in different orders.
        digest.update(np.asarray(jax.device_get(_sums(array))).tobytes())
    return digest.hexdigest()


@jax.jit
def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2**32 over all elements of a hash of their bits and place; 0 for a zero."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for dim, size in enumerate(x.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
    one, two = (_mix(index + np.uint32(salt)) for salt in (0x9E3779B1, 0x7F4A7C15))
    # `_mix` is one to one, so no other bits give the same
    hashes = (_mix(bits ^ place) - _mix(place) for place in (one, two))
    first, second = (jnp.sum(each, dtype=jnp.uint32) for each in hashes)
    return first, second


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's last step: every bit of the result depends on every bit of x (uint32)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def hash_params(params: Any) -> str:
    """sha256 over the paths, shapes, types and bytes of all parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        array = np.ascontiguousarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _checkpointer() -> ocp.StandardCheckpointer:
    """For weights that this process reads or writes, whatever others do meanwhile."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def save_params(folder: Path, params: Any, meta: Mapping[str, Any]) -> str:
    """Writes weights alone, atomically, with their hash, which is returned.

    They are whole on a device of this process (`parallel.mesh.gathered`).
    """
    digest = hash_params(params)
    with atomic_folder(folder) as temporary:
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary / "params", jax.device_get(params))
        files = sorted(path for path in (temporary / "params").rglob("*") if path.is_file())
        checksums = {str(path.relative_to(temporary)): sha256_file(path) for path in files}
        described = {"format": FORMAT, "sha256": digest, "checksums": checksums, **meta}
        write_json(temporary / "meta.json", described)
    return digest


def load_params(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Weights written by `save_params` and their meta; `like` gives shapes and shardings.

    Raises ArtifactError when they are missing, damaged, or of another model.
    """
    advice = "make them again with --force and the stage's name."
    try:
        meta = read_json(folder / "meta.json")
        if meta["format"] != FORMAT or not isinstance(meta["checksums"], dict):
            raise ValueError(f"its format is {meta['format']!r}, not {FORMAT!r}")
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        reason = str(error).split(";")[0].removesuffix(".")
        raise ArtifactError(
            f"{folder / 'meta.json'} does not describe weights ({reason}); {advice}"
        ) from error
    # Before Orbax sees them: it does not notice every damaged file, and is loud about the others.
    for name, checksum in meta["checksums"].items():
        path = folder / name
        if not path.exists() or sha256_file(path) != checksum:
            raise ArtifactError(
                f"the weights file {path} is missing or damaged (its checksum is not the one it "
                f"was saved with); {advice}"
            )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with _checkpointer() as checkpointer:
            params = checkpointer.restore(folder / "params", abstract)
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise ArtifactError(
            f"the weights in {folder} cannot be read ({first_line(error)}); {advice}"
        ) from error
    return params, meta
