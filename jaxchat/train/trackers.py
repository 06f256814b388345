"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, trackio (I/O; layer 2).

A tracker gets the same records as metrics.jsonl, in a thread of its own: it never stops training,
nor slows it. What fails is said once, and left alone from then on. A session that goes on after a
kill hands over what metrics.jsonl has kept, too, so that there is neither a gap nor a step twice:

    tensorboard  STAGE/tensorboard is written anew
    trackio      records that were told before (STAGE/tracked-trackio counts them) are left out
    wandb        the run of STAGE/tracker-id goes on; steps that its server has are left out
"""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import secrets
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxchat.errors import ConfigError
from jaxchat.paths import remove

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "jaxchat"
WAITING = 10_000  # records that may wait for a tracker; more are left out
GRACE = 10.0  # seconds that a tracker has to finish


def check_installed(names: Iterable[str]) -> None:
    """Raises ConfigError, with what to run, for a tracker whose package is missing."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"track.trackers names {name}, and the package {PACKAGES[name]} is not installed; "
                f'run: pip install "jaxchat[{name}]", or leave {name} out.'
            )


class Tracker(Protocol):
    """What each of them is to its thread."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step."""

    def close(self) -> None:
        """Writes what is left."""


class Background:
    """A tracker in a thread of its own; nothing of it raises."""

    def __init__(self, name: str, folder: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        """`folder` is the stage's; `kept` are the records of the sessions before."""
        self.name = name
        self._records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(WAITING)
        self._warned = False
        arguments = (folder, kept)
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Hands over a record, at once."""
        try:
            self._records.put_nowait(dict(record))
        except queue.Full:
            self._warn("it is too slow, and records are left out")

    def close(self, grace: float = GRACE) -> None:
        """Waits until it has taken all, but not for ever."""
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)
        self._thread.join(grace)
        if self._thread.is_alive():
            self._warn(f"it did not finish in {grace:g} seconds")

    def _work(self, folder: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        try:
            tracker = open_tracker(self.name, folder, fresh=not kept)
            try:
                for old in kept:
                    tracker.log(old["step"], numbers(old))
                while (record := self._records.get()) is not None:
                    tracker.log(record["step"], numbers(record))
            finally:
                tracker.close()
        except Exception as error:  # whatever a tracker raises is not worth a run
            self._warn(f"{type(error).__name__}: {error}")
            while self._records.get() is not None:
                pass  # nobody takes the rest

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            told = f"jaxchat: {self.name} gets no more metrics ({reason}); metrics.jsonl has all"
            print(told, file=sys.stderr, flush=True)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, but for its step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in ("step", "steps") and isinstance(value, int | float)
    }


def open_tracker(name: str, folder: Path, *, fresh: bool) -> Tracker:
    """The tracker of a stage, new or going on. Raises whatever its package raises."""
    if name == "tensorboard":
        return _TensorBoard(folder)
    if name == "wandb":
        return _Wandb(folder, fresh)
    mark = folder / "tracked-trackio"
    if fresh:
        mark.unlink(missing_ok=True)
    return _Once(_Trackio(folder, fresh), mark)


def title(folder: Path) -> str:
    """RUN-STAGE."""
    return f"{folder.parent.name}-{folder.name}"


class _Once:
    """Leaves out records that an earlier session has told; the file `mark` counts them."""

    def __init__(self, tracker: Tracker, mark: Path) -> None:
        self._tracker, self._mark, self._number = tracker, mark, 0
        self._told = int(mark.read_text(encoding="utf-8")) if mark.exists() else 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._number += 1
        if self._number > self._told:
            self._tracker.log(step, values)
            self._mark.write_text(str(self._number), encoding="utf-8")

    def close(self) -> None:
        self._tracker.close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        remove(folder / "tensorboard")
        self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, fresh: bool) -> None:
        import wandb

        path = folder / "tracker-id"
        if fresh or not path.exists():
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=PROJECT, name=title(folder), id=path.read_text(encoding="utf-8"),
            resume="allow", dir=str(folder), settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # What it was told last before a kill may not have come: the server knows, a file would not.
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, folder: Path, fresh: bool) -> None:
        import trackio

        resume = "never" if fresh else "allow"
        self._run = trackio.init(project=PROJECT, name=title(folder), resume=resume)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
