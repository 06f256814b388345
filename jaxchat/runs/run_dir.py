"""The folder of a run: where it is, its configuration, and its lock.

HOME/runs/NAME/config.json   the configuration, with all that was derived
HOME/runs/NAME/.lock         held while a process works on the run
HOME/runs/NAME/STAGE/        what a stage made
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from jaxchat import paths
from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError, BusyError, ConfigError

CONFIG = "config.json"
LOCK = ".lock"
DONE = "done.json"  # in the folder of a stage that is complete
LOOKS = 5  # attempts to lock before another process is taken for the owner


def folder(root: Path, name: str) -> Path:
    """Where the run called `name` lives under the home `root`. Raises ConfigError for a path."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f"run.name is {name!r}; it names a folder: letters, digits and . _ - only."
        )
    return paths.runs(root) / name


def check_writable(root: Path) -> None:
    """Makes `root`. Raises OSError, naming a path, when nothing can be written there."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=root, prefix=".writable.", suffix=".tmp") as file:
        file.write(b"x" * 4096)
        file.flush()


OTHER_NAME = 'or give this run another name with --set run.name="other"'


@contextlib.contextmanager
def locked(run: Path, kind: str = "run", advice: str = OTHER_NAME) -> Iterator[None]:
    """Keeps other processes from working on the run while open. Raises BusyError.

    `kind` says what the folder is of, and `advice` what else to do than wait.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        try:
            _take(file)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BusyError(
                f"another process (number {owner}) works on the {kind} in {run}; wait until it "
                f"ends, {advice}."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield  # the lock goes with the file, even when the process is killed


def _take(file: IO[str]) -> None:
    """Takes the lock; retries for a moment, since `is_busy` holds it while it looks."""
    for _ in range(LOOKS):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.02)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_busy(run: Path) -> bool:
    """Whether a process works on the run."""
    try:
        with (run / LOCK).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it was never locked, or cannot be read
        return False
    return False


def configure(root: Path, tier: Path, overrides: Iterable[str]) -> RunConfig:
    """The configuration of a run: that of a tier's file, with overrides.

    Where the run is there already and began with an imported model, that decides architecture and
    vocabulary. Raises ConfigError for what cannot be.
    """
    overrides = list(overrides)
    config = loading.load(tier, overrides)
    run = folder(root, config.name)
    if not (run / CONFIG).exists():
        return config
    try:
        there = read_config(run)
    except ArtifactError:  # damaged: it will be rewritten
        return config
    if there.imported.stage:
        return loading.load(tier, [*loading.of_imported(there), *overrides])
    return config


def write_config(run: Path, config: RunConfig) -> None:
    """Writes the configuration beside what is made with it."""
    with paths.atomic_open(run / CONFIG) as file:
        file.write(loading.to_json(config) + "\n")


def read_config(run: Path) -> RunConfig:
    """The configuration of a run. Raises ArtifactError when it is missing or unreadable."""
    path = run / CONFIG
    paths.read_json(path)  # says it well when the file is missing or no JSON
    try:
        return loading.from_json(path.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ArtifactError(
            f"{path} cannot be used: {str(error).removesuffix('.')}; give the command of the run "
            "again to rewrite it."
        ) from error


def has_one(run: Path, stages: Collection[str]) -> bool:
    """Whether one of some stages is complete, as far as its record says so."""
    return any((run / stage / DONE).exists() for stage in stages)


def all_runs(root: Path) -> dict[str, Path]:
    """The folders of a home's runs by name: those with a configuration."""
    return {path.parent.name: path.parent for path in paths.runs(root).glob(f"*/{CONFIG}")}


def with_one(root: Path, stages: Collection[str]) -> list[str]:
    """The names of the runs in which one of some stages is complete."""
    return sorted(name for name, run in all_runs(root).items() if has_one(run, stages))


def find(root: Path, name: str | None, having: Collection[str] = ()) -> Path:
    """The folder of the run called `name`, or of the run that was worked on last.

    With `having`, of those worked on last the first in which one of these stages is complete, if
    any is. Raises ArtifactError, with the runs that there are, when there is no such run.
    """
    there = all_runs(root)
    if name in there:
        return there[name]
    if name is None and there:
        runs = sorted(there.values(), key=lambda run: (run / CONFIG).stat().st_mtime_ns)[::-1]
        return next((run for run in runs if has_one(run, having)), runs[0])
    wanted = "no run" if name is None else f"no run {name!r}"
    others = f"; the runs there are {', '.join(sorted(there))}" if there else ""
    raise ArtifactError(
        f"there is {wanted} in {root}{others}. Make one with: python run_speedrun.py --tier cpu"
    )
