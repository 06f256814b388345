"""The rows that a device takes at once: as configured, predicted, or fewer if they do not fit.

Fewer rows are accumulated more often: a step has the same batch, and sums it in another order.
"""

from __future__ import annotations

from typing import Any, Literal

import jax

from jaxchat.config import memory
from jaxchat.errors import OutOfMemory
from jaxchat.model.backend import device_memory
from jaxchat.parallel.consensus import agreed
from jaxchat.paths import read_json, write_json
from jaxchat.train import oom
from jaxchat.train.first_step import Exhausted
from jaxchat.train.session import TrainingJob

FILE = "micro_rows.json"  # in a stage's folder, where its rows are not as configured
Rows = int | Literal["auto"]


def first_rows(
    job: TrainingJob, configured: Rows, single: tuple[int, int, int], held: int = 0
) -> int:
    """The rows with which a stage begins: those of its session before, else as configured.

    `single` [A, B, T] are the sizes of a step's batch with one row a device at once; `held` bytes
    of a device are taken by others. Raises OutOfMemory for "auto" where a single row is predicted
    not to fit. Collective.
    """
    return _remembered(job, configured) or (
        configured if isinstance(configured, int) else _predicted(job, single, held)
    )


def fewer_rows(job: TrainingJob, configured: Rows, error: Exhausted) -> int:
    """The rows with which a first step that found no memory is tried again: half.

    They are kept in the stage's folder for its next session. Raises OutOfMemory where a single row
    did not fit.
    """
    step, text = oom.predicted(job, error.batch), str(error)
    rows = memory.fewer_rows(step.rows, step.rows * step.accumulation)
    if not rows:
        raise OutOfMemory(oom.advice(job.title, step, text)) from error
    _remember(job, configured, rows)
    _say(
        f"{job.title}: a step with micro_rows {step.rows} does not fit ({oom.shortened(text)}); "
        f"it is tried again with {rows}, accumulated {step.rows // rows} times as often: the "
        "batch is the same, its sums are rounded in another order. The run keeps that; to have it "
        f"from the start, give --set {job.title}.micro_rows={rows}"
    )
    return rows


def _predicted(job: TrainingJob, single: tuple[int, int, int], held: int) -> int:
    """The most rows that are predicted to fit on every device; keeps them for the next session."""
    step, device = oom.predicted(job, single), jax.local_devices()[0]
    limit = device_memory(device) * (1 - memory.MARGIN) - held
    # the fewest of all processes
    rows = -agreed(job.mesh, -memory.largest_rows(step, step.accumulation, limit))
    peak = memory.predict(memory.with_rows(step, rows or 1, step.accumulation)).peak
    of = f"{peak / 1e9:.1f} GB of the {limit / 1e9:.1f} GB that it may on {device.device_kind}"
    if not rows:
        raise OutOfMemory(
            f'{job.title}.micro_rows is "auto", and a single row is predicted to take {of}; '
            f"{oom.LARGER} (--set {job.title}.micro_rows=1 tries it all the same)."
        )
    _remember(job, "auto", rows)
    _say(f"{job.title}: micro_rows is {rows} (auto), predicted to take {of}")
    return rows


def _remembered(job: TrainingJob, configured: Rows) -> int:
    """The rows of an earlier session with the same setting and devices; 0: there are none."""
    path, rows = job.folder / FILE, 0
    if jax.process_index() == 0 and path.exists():
        found = read_json(path)
        if isinstance(found, dict) and found == _record(job, configured, found.get("micro_rows")):
            rows = int(found["micro_rows"])
    rows = max(0, agreed(job.mesh, rows))
    if rows:
        _say(
            f"{job.title}: micro_rows is {rows} as before, for the {configured} asked for ({path})"
        )
    return rows


def _remember(job: TrainingJob, configured: Rows, rows: int) -> None:
    if jax.process_index() == 0:
        write_json(job.folder / FILE, _record(job, configured, rows))


def _record(job: TrainingJob, configured: Rows, rows: Any) -> dict[str, Any]:
    """On other devices, or where another number is asked for, it does not count."""
    return {
        "configured": configured,
        "mesh": dict(job.mesh.shape),
        "device": jax.devices()[0].device_kind,
        "micro_rows": rows,
    }


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
