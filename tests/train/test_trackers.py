"""Trackers: every record arrives once, whatever was killed; and they stop nothing."""

import contextlib
import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.config.operations import TRACKERS
from jaxchat.errors import ConfigError
from jaxchat.runs.stages import STAGES
from jaxchat.train import trackers
from jaxchat.train.metrics import MetricsLog, read_metrics

CPU = loading.tiers()["cpu"]
# A session: steps from FIRST to END, the last one without goodbye where it is killed.
SESSION = """
import os, sys, time
from pathlib import Path
from jaxchat.train.metrics import MetricsLog
name, folder, first, end, killed = sys.argv[1:]
log = MetricsLog(Path(folder) / "metrics.jsonl", from_step=int(first), trackers=(name,))
for step in range(int(first), int(end)):
    log.write({"step": step, "steps": 12, "loss": 100.0 - step, "skipped": False})
    if step % 4 == 3:
        log.write({"step": step, "bits_per_byte": 2.0})
if killed == "killed":
    time.sleep(3)  # the thread takes what waits
    os._exit(9)
log.close()
"""


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(trackers.PACKAGES[name]) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


def killed_and_resumed(name: str, folder: Path, store: Path | None = None) -> None:
    """Steps 0 to 9, a kill, and steps 7 to 11 from the checkpoint."""
    store = store or folder / "trackio"
    for first, end, how in ((0, 10, "killed"), (7, 12, "closed")):
        command = [sys.executable, "-c", SESSION, name, str(folder), str(first), str(end), how]
        quiet = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(store)}
        done = subprocess.run(
            command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False
        )
        assert done.returncode == (9 if how == "killed" else 0), done.stderr
        assert "gets no more" not in done.stderr


@needs("tensorboard")
def test_tensorboard_has_each_step_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stage = tmp_path / "run" / "base"
    killed_and_resumed("tensorboard", stage)
    read = events.EventAccumulator(str(stage / "tensorboard"))
    read.Reload()
    losses = [(point.step, point.value) for point in read.Scalars("loss")]
    assert losses == [(step, 100.0 - step) for step in range(12)]
    assert [point.step for point in read.Scalars("bits_per_byte")] == [3, 7, 11]
    assert "steps" not in read.Tags()["scalars"]


@needs("trackio")
@pytest.mark.slow
def test_trackio_has_each_step_once(tmp_path):
    killed_and_resumed("trackio", tmp_path / "run" / "base")
    (path,) = (tmp_path / "run" / "base" / "trackio").glob("jaxchat*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by id").fetchall()
    records = [(step, json.loads(values)) for step, values in rows]
    losses = [(step, values["loss"]) for step, values in records if "loss" in values]
    assert losses == [(step, 100.0 - step) for step in range(12)]
    assert [step for step, values in records if "bits_per_byte" in values] == [3, 7, 11]


@needs("trackio")
@pytest.mark.slow
def test_trackio_gives_a_stage_that_is_done_again_a_run_of_its_own(tmp_path):
    stage = tmp_path / "run" / "base"
    names = ["run-base", "run-base-2"]
    for number in (1, 2):
        killed_and_resumed("trackio", stage, tmp_path / "trackio")
        shutil.rmtree(stage)  # --force
        (path,) = (tmp_path / "trackio").glob("jaxchat*.db")
        with sqlite3.connect(path) as database:
            rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
        for name in names[:number]:
            losses = [json.loads(values).get("loss") for of, values in rows if of == name]
            assert [loss for loss in losses if loss] == [100.0 - step for step in range(12)]
        assert {of for of, _ in rows} == set(names[:number])


class Trackio:
    """As much of trackio 0.43 as is used; two runs may have one name, as there."""

    def __init__(self) -> None:
        self.runs: list[types.SimpleNamespace] = []

    def init(self, project: str, name: str, resume: str) -> types.SimpleNamespace:
        found = [run for run in self.runs if run.name == name] if resume == "allow" else []
        if not found:
            records: list[tuple[int, dict[str, float]]] = []
            run = types.SimpleNamespace(name=name, project=project, records=records)
            run.log = lambda values, step: run.records.append((step, values))
            run.finish = lambda: None
            self.runs.append(run)
        return found[-1] if found else run

    def Api(self) -> types.SimpleNamespace:
        def runs(project: str) -> list[types.SimpleNamespace]:
            if not self.runs:
                raise ValueError(f"Project '{project}' does not exist")
            return self.runs

        return types.SimpleNamespace(runs=runs)


def test_a_stage_that_is_done_again_renames_its_run_and_resumes_that(tmp_path, monkeypatch):
    fake, stage = Trackio(), tmp_path / "run" / "base"
    monkeypatch.setitem(sys.modules, "trackio", fake)

    def session(first: int, end: int) -> None:
        path = stage / "metrics.jsonl"
        with contextlib.closing(MetricsLog(path, from_step=first, trackers=("trackio",))) as log:
            for step in range(first, end):
                log.write({"step": step, "loss": 1})

    for _ in range(2):
        session(0, 3)
        session(2, 5)  # from a checkpoint: step 2 was sent
        shutil.rmtree(stage)  # --force
    assert [run.name for run in fake.runs] == ["run-base", "run-base-2"]
    for run in fake.runs:
        assert [step for step, _ in run.records] == [0, 1, 2, 3, 4]
        assert {type(value) for _, values in run.records for value in values.values()} == {float}


def test_the_count_of_an_older_version_is_read(tmp_path, monkeypatch):
    fake, stage = Trackio(), tmp_path / "run" / "base"
    monkeypatch.setitem(sys.modules, "trackio", fake)
    stage.mkdir(parents=True)
    (stage / "tracked-trackio").write_text("1")
    tracker = trackers.open_tracker("trackio", stage, fresh=False)
    for step in (0, 1):
        tracker.log(step, {"loss": 1.0})
    assert [(run.name, run.records) for run in fake.runs] == [("run-base", [(1, {"loss": 1.0})])]
    assert (stage / "tracked-trackio").read_text() == "2\nrun-base"


@needs("wandb")
@pytest.mark.slow
def test_wandb_continues_the_same_run(tmp_path):
    stage = tmp_path / "run" / "base"
    killed_and_resumed("wandb", stage)
    files = sorted((stage / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    ids = {path.stem.removeprefix("run-") for path in files}
    assert ids == {(stage / "tracker-id").read_text()}
    assert files[-1].stat().st_size > 1_000, "the last session has all that was kept"


def test_a_package_that_is_missing_is_reported_before_anything_runs(monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "trackio", "no_such_package")
    trackers.check_installed([])
    with pytest.raises(ConfigError, match=r'not installed; run: pip install "jaxchat\[trackio\]"'):
        trackers.check_installed(["trackio"])


def test_the_names_are_checked():
    config = loading.load(CPU, ['track.trackers=["tensorboard"]'])
    assert config.track.trackers == ("tensorboard",)
    assert loading.from_json(loading.to_json(config)) == config
    with pytest.raises(ConfigError, match="it must be one of tensorboard, wandb, trackio"):
        loading.load(CPU, ['track.trackers=["mlflow"]'])
    with pytest.raises(ConfigError, match="name each once"):
        loading.load(CPU, ['track.trackers=["wandb", "wandb"]'])
    assert set(TRACKERS) == set(trackers.PACKAGES)


def test_trackers_change_no_stage():
    plain, tracked = loading.load(CPU), loading.load(CPU, ['track.trackers=["wandb"]'])
    for stage in STAGES:
        if stage.name != "report":  # which is of the whole configuration
            assert stage.settings(plain) == stage.settings(tracked)


class Broken:
    """Fails at the third step, as when a disk is full."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, step, values):
        if step == 2:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def close(self):
        pass


def test_one_that_fails_is_reported_once_and_stops_nothing(tmp_path, capsys, monkeypatch):
    broken = Broken()
    monkeypatch.setattr(trackers, "open_tracker", lambda *arguments, **more: broken)
    with contextlib.closing(MetricsLog(tmp_path / "metrics.jsonl", trackers=("wandb",))) as log:
        for step in range(50):
            log.write({"step": step, "loss": 1.0})
    assert [record["step"] for record in read_metrics(log.path)] == list(range(50))
    assert broken.steps == [0, 1]
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("jaxchat: wandb gets no more metrics (OSError: [Errno 28] No space")


def test_one_that_hangs_slows_nothing(tmp_path, capsys, monkeypatch):
    class Hanging(Broken):
        def log(self, step, values):
            time.sleep(60)

    monkeypatch.setattr(trackers, "open_tracker", lambda *arguments, **more: Hanging())
    monkeypatch.setattr(trackers, "WAITING", 10)
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=("wandb",))
    began = time.monotonic()
    for step in range(100):
        log.write({"step": step})
    for tracker in log.trackers:
        tracker.close(0.1)
    assert time.monotonic() - began < 30
    assert len(read_metrics(log.path)) == 100
    assert capsys.readouterr().err.count("gets no more metrics (it is too slow") == 1


def test_what_cannot_be_opened_is_reported(tmp_path, capsys, monkeypatch):
    def refuse(*arguments, **more):
        raise ConnectionError("no network")

    monkeypatch.setattr(trackers, "open_tracker", refuse)
    with contextlib.closing(MetricsLog(tmp_path / "metrics.jsonl", trackers=("trackio",))) as log:
        log.write({"step": 0})
    assert "trackio gets no more metrics (ConnectionError: no network)" in capsys.readouterr().err


def test_only_numbers_are_tracked():
    record = {"step": 3, "steps": 9, "loss": 2, "skipped": True, "note": "text"}
    found = trackers.numbers(record)
    assert found == {"loss": 2.0, "skipped": 1.0}
    assert {type(value) for value in found.values()} == {float}
