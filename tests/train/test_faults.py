"""Disks that are full or may only be read, and clocks that jump: training ends well and resumes."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from disk import remount
from tiny_training import CLASSIC, TRAIN, random_params, tiny_job

from jaxchat.checkpoints.save import Checkpoints, hash_params
from jaxchat.data.loader import RowSource
from jaxchat.errors import explain
from jaxchat.train.loop import fit
from jaxchat.train.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights of a run that nothing happened to."""
    with jax.numpy_dtype_promotion("standard"):
        job = tiny_job(tmp_path_factory.mktemp("alone"))
        return hash_params(fit(job, random_params(CLASSIC)).params)


def message(error: BaseException, home: Path) -> str:
    """What the user sees, of an error that makes the exit code 1."""
    explained = explain(error, home)
    assert explained is not None, f"a traceback: {error!r}"
    assert explained[1] == 1
    assert "\n" not in explained[0]
    return explained[0]


def test_a_disk_that_is_full_when_a_checkpoint_is_saved(
    small_disk: Path, tmp_path: Path, alone: str
) -> None:
    tiny_job(tmp_path)  # its rows have room
    with pytest.raises(Exception) as caught:  # noqa: PT011 of Orbax's, of many kinds
        fit(replace(tiny_job(tmp_path), folder=small_disk / "stage"), random_params(CLASSIC))
    assert "is full; free some space" in message(caught.value, small_disk)
    with Checkpoints(small_disk / "stage" / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None, "half a checkpoint is taken for whole"
    remount(small_disk, "size=64m")
    job = replace(tiny_job(tmp_path), folder=small_disk / "stage")
    assert hash_params(fit(job, random_params(CLASSIC)).params) == alone
    steps = [r["step"] for r in read_metrics(job.folder / "metrics.jsonl") if "loss" in r]
    assert steps == list(range(TRAIN.steps))


def test_a_disk_that_becomes_read_only_amid_training(
    small_disk: Path, tmp_path: Path, alone: str
) -> None:
    remount(small_disk, "size=64m")

    class Failing(RowSource):
        """The disk fails while these rows are read; the system then refuses all writes."""

        reads = 0

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            Failing.reads += 1
            if Failing.reads == 9 * TRAIN.micro_rows * 2:
                remount(small_disk, "ro")
            return super().__getitem__(index)

    with pytest.raises(Exception) as caught:  # noqa: PT011
        fit(
            replace(tiny_job(tmp_path, Failing), folder=small_disk / "stage"),
            random_params(CLASSIC),
        )
    assert "Read-only file system" in message(caught.value, small_disk)
    remount(small_disk, "rw")
    job = replace(tiny_job(tmp_path), folder=small_disk / "stage")
    assert hash_params(fit(job, random_params(CLASSIC)).params) == alone


@pytest.mark.parametrize("days", [-1, 1], ids=["back", "forward"])
def test_a_clock_that_jumps_costs_a_save_at_most_and_no_time_runs_backwards(
    tmp_path: Path, alone: str, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Every time that anybody looks at it. Orbax measures by it how long a save may take."""
    clock, looks = time.time, 0

    def jumping() -> float:
        nonlocal looks
        looks += 1
        return clock() + days * looks * 86_400

    monkeypatch.setattr(time, "time", jumping)
    job, failed = tiny_job(tmp_path), None
    try:
        fit(job, random_params(CLASSIC))
    except OSError as error:
        failed = error
    if failed is not None:
        assert days > 0
        assert "the clock was put forward" in message(failed, tmp_path)
    assert looks, "the clock was never read: this shows nothing"
    monkeypatch.undo()
    result = fit(job, random_params(CLASSIC))
    assert hash_params(result.params) == alone
    times = [record["time"] for record in read_metrics(job.folder / "metrics.jsonl")]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] <= result.seconds + 0.001 < 3_600
