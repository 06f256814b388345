"""A run by several processes: how they join, check that they agree, and end together.

`parallel.launch_env` says how they are started. All need the same home, on a disk that they share.
Process 0 does alone what is done once and reports; training is done by all (`runner`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from jaxchat import errors
from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.errors import ArtifactError, ConfigError, GroupError
from jaxchat.parallel.launch_env import configure_jax, connect_devices, read_spec
from jaxchat.parallel.process_group import ALONE, ProcessGroup, end, join
from jaxchat.runs import run_dir
from jaxchat.runs.mirror import Mirror
from jaxchat.runs.provenance import versions
from jaxchat.signals import NOTICES

SEEN = ".seen"  # in the run's folder: what process 0 has written last, to see that all see it
LOOK_SECONDS = 90.0  # a network file system may show a new file that late


@contextlib.contextmanager
def joined(root: Path) -> Iterator[ProcessGroup]:
    """This process's group, once all are there; when one fails in the block, all end.

    What happened is printed once, by process 0; the others print nothing. Raises GroupError where
    the processes do not find each other.
    """
    place = read_spec()
    if place is None:
        yield ALONE
        return
    group = join(place)
    try:
        with contextlib.nullcontext() if group.leads else _silent():
            _compare(group)
            yield group
        group.close()
    except BaseException as error:
        for number in (*NOTICES, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # it is ending
        explained = errors.explain(error, root)
        if explained is not None:
            end(group, *explained, certain=True)
        end(group, "".join(traceback.format_exception(error)), 1, certain=False)


@contextlib.contextmanager
def working_on(run: Path, config: RunConfig, group: ProcessGroup) -> Iterator[None]:
    """Process 0 holds the run's lock; checks that all processes have the same run and home."""
    with run_dir.locked(run) if group.leads else contextlib.nullcontext():
        if group.leads:
            run_dir.write_config(run, config)
        if group.size > 1:
            _check_same(run, config, group)
        yield


def mirrored(
    run: Path, config: RunConfig, group: ProcessGroup
) -> contextlib.AbstractContextManager[object]:
    """While open, process 0 keeps `mirror.url` up to date; first the run gets what is there.

    Raises ConfigError when nothing can be written there.
    """
    if not config.mirror.url or not group.leads:
        return contextlib.nullcontext()
    return Mirror(config.mirror, run)


def start_jax(config: RunConfig, root: Path, group: ProcessGroup) -> None:
    """Sets up JAX, over the devices of all processes. Before one is asked for."""
    configure_jax(config.mesh, root / "xla", whole_gpu=True)
    connect_devices(group)


def _compare(group: ProcessGroup) -> None:
    """Raises GroupError where packages differ, as then would the results, or the programs."""
    mine = versions()
    for index, others in enumerate(group.gather(mine)):
        differ = [f"{name} {others[name]}" for name in mine if others[name] != mine[name]]
        if differ:
            have = ", ".join(f"{name} {mine[name]}" for name in mine if others[name] != mine[name])
            raise GroupError(
                f"process {index} has {', '.join(differ)}, and process {group.index} {have}; "
                "install the same packages for all (constraints.txt)."
            )


def _check_same(run: Path, config: RunConfig, group: ProcessGroup) -> None:
    settings = group.gather(loading.to_json(config))
    if group.leads:
        for index, other in enumerate(settings):
            if other != settings[0]:
                raise ConfigError(
                    f"process {index} was started with other settings than process 0; give all "
                    "the same command."
                )
        (run / SEEN).write_text(secrets.token_hex(8), encoding="utf-8")
    token = group.broadcast((run / SEEN).read_text(encoding="utf-8") if group.leads else None)
    if not all(group.gather(_seen(run / SEEN, token))):
        raise ArtifactError(
            f"not all processes see what process 0 writes into {run}; all of them need the same "
            "--home (JAXCHAT_HOME), on a disk that they share."
        )


def _seen(path: Path, token: str) -> bool:
    deadline = time.monotonic() + LOOK_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == token:
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discards output, which process 0 prints too; errors in threads are still shown."""
    threading.excepthook = lambda args: traceback.print_exception(
        args.exc_type, args.exc_value, args.exc_traceback, file=sys.__stderr__
    )
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
