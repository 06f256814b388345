"""Trackers of metrics beside metrics.jsonl: TensorBoard, Weights & Biases, trackio.

A tracker receives the records of metrics.jsonl in a thread of its own: it never stops training, nor
slows it. A tracker that fails is reported once, then disabled. A session that resumes also replays
the records that metrics.jsonl has, so that there is neither a gap nor a step twice:

    tensorboard  STAGE/tensorboard is written from the start
    trackio      records that were sent before (STAGE/tracked-trackio counts them) are left out; a
                 stage that is done again gets a run of another name: RUN-STAGE-2
    wandb        the run of STAGE/tracker-id continues; steps that its server has are left out
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Tracker:
    """A tracker as its thread uses it."""

    log: Callable[[int, Mapping[str, float]], object]  # (step, its numbers)
    close: Callable[[], object]  # writes what is left


class Background:
    """A tracker in a thread of its own; nothing of it raises."""

    def __init__(self, name: str, folder: Path, earlier: Sequence[Mapping[str, Any]]) -> None:
        """`folder` is the stage's; `earlier` are the records of the sessions before."""
        self.name = name
        self._records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, args=(folder, earlier), daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Hands over a record, at once."""
        try:
            self._records.put_nowait(dict(record))
        except queue.Full:
            self._warn("it is too slow, and records are left out")

    def close(self, grace: float = GRACE) -> None:
        """Waits until all records are taken, for at most `grace` seconds."""
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)
        self._thread.join(grace)
        if self._thread.is_alive():
            self._warn(f"it did not finish in {grace:g} seconds")

    def _work(self, folder: Path, earlier: Sequence[Mapping[str, Any]]) -> None:
        try:
            tracker = open_tracker(self.name, folder, fresh=not earlier)
            try:
                for record in itertools.chain(earlier, iter(self._records.get, None)):
                    tracker.log(record["step"], numbers(record))
            finally:
                tracker.close()
        except Exception as error:  # whatever a tracker raises is not worth a run
            self._warn(f"{type(error).__name__}: {error}")
            while self._records.get() is not None:
                pass  # the rest is dropped

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"jaxchat: {self.name} gets no more metrics ({reason}); metrics.jsonl has all"
            print(text, file=sys.stderr, flush=True)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, but for its step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name not in ("step", "steps") and isinstance(value, int | float)
    }


def open_tracker(name: str, folder: Path, *, fresh: bool) -> Tracker:
    """A stage's tracker, `fresh` or continued. Raises whatever its package raises."""
    title = f"{folder.parent.name}-{folder.name}"  # RUN-STAGE
    open_one = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[name]
    return open_one(folder, title, fresh)


def _tensorboard(folder: Path, title: str, fresh: bool) -> Tracker:
    del title, fresh
    from tensorboardX import SummaryWriter

    remove(folder / "tensorboard")
    writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(log, writer.close)


def _wandb(folder: Path, title: str, fresh: bool) -> Tracker:
    import wandb

    path = folder / "tracker-id"
    if fresh or not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    run = wandb.init(
        project=PROJECT, name=title, id=path.read_text(encoding="utf-8"), resume="allow",
        dir=str(folder), settings=wandb.Settings(console="off", silent=True),
    )  # fmt: skip

    def log(step: int, values: Mapping[str, float]) -> None:
        # The last steps before a kill may not have arrived: the server knows, a file would not.
        if step >= run.starting_step:
            run.log(dict(values), step=step)

    return Tracker(log, run.finish)


def _trackio(folder: Path, title: str, fresh: bool) -> Tracker:
    import trackio

    mark = folder / "tracked-trackio"
    sent, name = 0, title
    if not fresh and mark.exists():  # files of older versions have the count alone
        count, _, noted = mark.read_text(encoding="utf-8").partition("\n")
        sent, name = int(count), noted or title
    elif fresh:  # or its steps would be shown in one curve with those of before
        name = free_name(title, _trackio_names(trackio.Api()))
    run = trackio.init(project=PROJECT, name=name, resume="never" if fresh else "allow")
    counter = itertools.count(1)

    def log(step: int, values: Mapping[str, float]) -> None:
        if (number := next(counter)) > sent:
            run.log(dict(values), step=step)
            mark.write_text(f"{number}\n{run.name}", encoding="utf-8")

    return Tracker(log, run.finish)


def _trackio_names(api: Any) -> set[str]:
    try:
        return {run.name for run in api.runs(PROJECT)}
    except ValueError:  # there is no such project yet
        return set()


def free_name(title: str, taken: Container[str]) -> str:
    """The title, or with the first number from 2 that nobody has."""
    numbered = (f"{title}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([title], numbered) if name not in taken)
