"""The training loop: killed or asked to stop, it ends as if nothing had happened."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_training
from handed_over import HandedOver
from tiny_training import (
    CLASSIC,
    TOKENIZER,
    TRAIN,
    VOCAB,
    T,
    random_params,
    tiny_job,
    write_tiny_rows,
)

from jaxchat.checkpoints.save import Checkpoints, hash_params
from jaxchat.config.schema import MeshConfig, TrainConfig
from jaxchat.data.loader import AHEAD, RowSource, training_batches
from jaxchat.data.shard_folder import write_rows
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.bpb import bits_per_byte
from jaxchat.parallel.mesh import make_mesh
from jaxchat.signals import Interrupted, stop_requests
from jaxchat.train import loop, session
from jaxchat.train.loop import FitJob, FitResult, count_steps, fit, plan_batch
from jaxchat.train.metrics import read_metrics
from jaxchat.train.profiling.capture import Capture
from jaxchat.train.profiling.request import parse
from jaxchat.train.profiling.summary import read_profile

pytestmark = pytest.mark.usefixtures("optax_promotion")


def times(job: FitJob) -> list[float]:
    return [record["time"] for record in read_metrics(job.folder / "metrics.jsonl")]


def records(job: FitJob) -> list[dict[str, Any]]:
    """What was logged, but for the times, which no two runs share."""
    logged = read_metrics(job.folder / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k != "time"} for record in logged]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, list[dict[str, Any]]]:
    """A run that nothing interrupted: its result and its metrics."""
    job = tiny_job(tmp_path_factory.mktemp("whole"))
    with jax.numpy_dtype_promotion("standard"):
        return fit(job, random_params(CLASSIC)), records(job)


def assert_same_run(job: FitJob, got: FitResult, whole: Any) -> None:
    """Bit for bit: the parameters, every loss, every evaluation."""
    want, metrics = whole
    assert hash_params(got.params) == hash_params(want.params)
    assert (got.loss, got.bits_per_byte) == (want.loss, want.bits_per_byte)
    assert records(job) == metrics
    assert times(job) == sorted(times(job)), "the time of a session before was forgotten"
    assert 0 < times(job)[0] <= times(job)[-1] <= got.seconds + 0.001  # rounded to ms


def test_no_batch_is_written_to_once_it_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = HandedOver()
    monkeypatch.setattr(loop, "put_batch", batches.watch(loop.put_batch))
    fit(tiny_job(tmp_path), random_params(CLASSIC))
    batches.check(calls=12)


def test_rows_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    fewer = replace(CLASSIC, vocab_size=40)
    with pytest.raises(ArtifactError, match=r"a held-out row of test has the id \d+, and the voc"):
        fit(replace(job, model=fewer), random_params(fewer))
    tokens = np.zeros((20, T + 1), np.uint16)  # held-out rows that are in the vocabulary
    write_rows(tmp_path / "zeros", tokens, None, TOKENIZER)
    within = RowSource(tmp_path / "zeros", TOKENIZER)
    with pytest.raises(ArtifactError, match=r"a row of test has the id \d+, and the vocabulary"):
        fit(replace(job, model=fewer, held_out=within), random_params(fewer))
    one = {"tokens": np.full((1, T + 1), VOCAB - 1), "mask": np.ones((1, T + 1))}
    with pytest.raises(ArtifactError, match="a row of text has the id 299"):
        bits_per_byte(random_params(fewer), [one], job.token_bytes, fewer)


def test_a_run_logs_every_step_once_and_learns(whole: Any, tmp_path: Path) -> None:
    result, metrics = whole
    losses = [r["loss"] for r in metrics if "loss" in r]
    assert [r["step"] for r in metrics if "loss" in r] == list(range(12))
    assert [r["step"] for r in metrics if "bits_per_byte" in r] == [3, 7, 11]
    assert (result.steps, result.tokens) == (12, 12 * 8 * T)
    assert result.loss == losses[-1]  # the mean of the last tenth
    assert result.bits_per_byte == metrics[-1]["bits_per_byte"]
    assert result.seconds > 0

    job = tiny_job(tmp_path)
    held_out = [{k: np.stack([job.held_out[i][k] for i in range(8)]) for k in ("tokens", "mask")}]

    def measure(params: Any) -> float:
        return bits_per_byte(params, held_out, job.token_bytes, CLASSIC)

    assert measure(result.params) == pytest.approx(result.bits_per_byte, rel=1e-5)
    assert result.bits_per_byte < measure(random_params(CLASSIC)) - 0.5


def run_until(folder: Path, step: int, checkpoint: int = 0) -> None:
    """Trains in another process; SIGKILLs it once `step` is logged and `checkpoint` is written."""
    process = subprocess.Popen([sys.executable, tiny_training.__file__, str(folder)])
    log = folder / "stage" / "metrics.jsonl"
    began = time.monotonic()
    saved = folder / "stage" / "checkpoints" / str(checkpoint)
    while not (
        any(record["step"] >= step for record in read_metrics(log))
        and (not checkpoint or saved.exists())
    ):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < began + 300, "the training hangs"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    logged = [record["step"] for record in read_metrics(log)]
    assert max(logged) < TRAIN.steps - 1, "it was killed too late to show anything"


def test_a_run_killed_twice_ends_like_one_left_alone(tmp_path: Path, whole: Any) -> None:
    job = tiny_job(tmp_path)
    run_until(tmp_path, step=2)  # before the first checkpoint, of step 5
    run_until(tmp_path, step=7, checkpoint=5)  # and after it
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() in (5, 10)
    assert_same_run(job, fit(job, random_params(CLASSIC)), whole)


def stopping_at(step: int, number: int = signal.SIGTERM) -> type[RowSource]:
    """Rows that send a signal while those of a step are read, some steps ahead of their use."""

    class Stopping(RowSource):
        reads = 0

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            Stopping.reads += 1
            if Stopping.reads == step * 8 + 3:
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    return Stopping


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_run_asked_to_stop_saves_and_resumes_later(
    tmp_path: Path, whole: Any, number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught:
        fit(tiny_job(tmp_path, rows=stopping_at(6, number)), random_params(CLASSIC))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before, "the signal is not handled as it was"

    job = tiny_job(tmp_path)
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        saved = checkpoints.latest()
    assert saved in range(3, 8), "the step that was under way was not saved"
    assert [r["step"] for r in records(job) if "loss" in r] == list(range(saved))
    assert_same_run(job, fit(job, random_params(CLASSIC)), whole)


def test_a_run_asked_to_stop_after_its_last_step_stops_there(tmp_path: Path, whole: Any) -> None:
    """A signal that comes while the last evaluation runs must not be lost."""
    read = session.read_metrics

    def stopped(path: Path) -> list[dict[str, Any]]:
        found = read(path)
        if any(record.get("step") == TRAIN.steps - 1 for record in found):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "read_metrics", stopped)
        with pytest.raises(Interrupted, match="SIGTERM"):
            fit(tiny_job(tmp_path), random_params(CLASSIC))
    job = tiny_job(tmp_path)
    assert_same_run(job, fit(job, random_params(CLASSIC, seed=9)), whole)


def test_what_prepares_the_data_may_be_stopped_with_the_run(tmp_path: Path, whole: Any) -> None:
    """A scheduler's signal goes to all processes: its sentence is not the other's error."""

    class Ending(RowSource):
        reads = 0

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            Ending.reads += 1
            if Ending.reads > 7 * 8:
                os.kill(os.getpid(), signal.SIGTERM)
                raise ArtifactError("the process that prepares it ended with 75.")
            return super().__getitem__(index)

    with pytest.raises(Interrupted, match="SIGTERM"):
        fit(tiny_job(tmp_path, rows=Ending), random_params(CLASSIC))
    job = tiny_job(tmp_path)
    assert_same_run(job, fit(job, random_params(CLASSIC)), whole)


def test_data_that_ends_too_early_costs_no_step(tmp_path: Path, whole: Any) -> None:
    class Ending(RowSource):
        """Like shards whose preparation has failed."""

        reads = 0

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            Ending.reads += 1
            if Ending.reads > 7 * 8:
                raise ArtifactError("shard 3 of 4 is missing and will not come.")
            return super().__getitem__(index)

    with pytest.raises(ArtifactError, match="will not come"):
        fit(tiny_job(tmp_path, rows=Ending), random_params(CLASSIC))
    job = tiny_job(tmp_path)
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 7
    assert_same_run(job, fit(job, random_params(CLASSIC)), whole)


def test_a_signal_after_the_loop_is_no_business_of_its_own() -> None:
    # a shell starts background jobs with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_requests() as stop:
            assert stop() == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, whole: Any) -> None:
    job, params = tiny_job(tmp_path), random_params(CLASSIC)
    first = fit(job, params)
    assert_same_run(job, first, whole)
    assert hash_params(params) == hash_params(random_params(CLASSIC)), "the caller's were donated"
    # other parameters, to show that it is the checkpoint that comes back
    again = fit(job, random_params(CLASSIC, seed=9))
    assert_same_run(job, again, whole)
    assert again.seconds >= first.seconds * 0.5, "the time of the first session is forgotten"


def test_a_profile_of_some_steps_changes_nothing(tmp_path: Path, whole: Any) -> None:
    job = tiny_job(tmp_path)
    capture = Capture(parse("5:8"), "base", tmp_path / "profile", job.model)
    # within them a step is evaluated; the first checkpoint is made before they begin
    assert_same_run(job, fit(replace(job, profile=capture), random_params(CLASSIC)), whole)
    assert len(read_profile(tmp_path / "profile").breakdown.steps) == 3


def test_a_run_moved_from_mesh_to_mesh_has_the_losses_of_one_device(
    tmp_path: Path, whole: Any
) -> None:
    class Ending(RowSource):
        left = 0

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            Ending.left -= 1
            if Ending.left < 0:
                raise ArtifactError("the machine is given back.")
            return super().__getitem__(index)

    def train_on(shape: tuple[int, int, int], steps: int) -> FitJob:
        """Trains this many steps on a mesh, or to the end."""
        Ending.left = steps * 8
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
        train = replace(TRAIN, micro_rows=1, save_every=100)
        job = tiny_job(tmp_path, rows=Ending, mesh=mesh, train=train)
        if steps < TRAIN.steps:
            with pytest.raises(ArtifactError, match="given back"):
                fit(job, random_params(CLASSIC))
        else:
            # other parameters, to show that what was learned comes with it
            fit(job, random_params(CLASSIC, seed=9))
        return job

    train_on((8, 1, 1), 4)
    train_on((2, 2, 2), 3)
    job = train_on((1, 1, 1), 12)
    for got, want in zip(records(job), whole[1], strict=True):
        assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bits_on_the_same_mesh(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """Several processes: test_mesh.py. Whole runs: test_resume.py."""
    mesh, train = make_mesh(MeshConfig(*shape)), replace(TRAIN, micro_rows=1)
    hashes, logs = [], []
    for number, seed in enumerate((1, 1, 2)):
        job = tiny_job(tmp_path / str(number), seed=seed, mesh=mesh, train=train)
        hashes.append(hash_params(fit(job, random_params(CLASSIC)).params))
        logs.append(records(job))
    assert (hashes[0], logs[0]) == (hashes[1], logs[1])
    assert hashes[2] != hashes[0]


def test_another_seed_gives_another_run(tmp_path: Path, whole: Any) -> None:
    job = tiny_job(tmp_path, seed=2)
    fit(job, random_params(CLASSIC))
    losses, others = (
        [r["loss"] for r in found if "loss" in r] for found in (records(job), whole[1])
    )
    assert not set(losses) & set(others)


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(tmp_path: Path) -> None:
    params = random_params(CLASSIC)
    params["wte"]["embedding"] = params["wte"]["embedding"] * np.float32(np.nan)
    job = tiny_job(tmp_path, train=replace(TRAIN, save_every=1))
    with pytest.raises(FloatingPointError, match=r"test: the loss of step 0 is nan; its batch"):
        fit(job, params)
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() is None


class Poisoned(RowSource):
    """One of its 50 rows is of another language, so that its loss is a spike."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = super().__getitem__(index)
        tokens = np.full_like(row["tokens"], VOCAB - 1)
        return {**row, "tokens": tokens} if index == 17 else row


class Failing(Poisoned):
    """Cannot be read any more after some rows, as if the process were gone."""

    left = 0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        Failing.left -= 1
        if Failing.left < 0:
            raise ConnectionError("gone")
        return super().__getitem__(index)


# a step is one row, so that a single row is felt
SPIKY = replace(
    TRAIN, steps=100, batch_tokens=T, micro_rows=1, save_every=10, eval_every=50, spike=3.0
)


def first_spike(job: FitJob) -> int:
    """The first step with the odd row that is judged: 50 losses come before."""
    batches = training_batches(job.rows, 1, job.seed)
    return next(n for n in range(50, 100) if (batches[n]["tokens"] == VOCAB - 1).all())


def test_a_spike_is_left_out_and_its_batch_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tiny_job(tmp_path, rows=Poisoned, train=replace(SPIKY, rollbacks=2))
    bad = first_spike(job)
    fit(job, random_params(CLASSIC))
    printed = capsys.readouterr().out
    assert printed.count("goes back to its last checkpoint and leaves that batch out") == 1
    kept = np.load(job.folder / f"diverged-{bad}.npz")
    assert (kept["tokens"] == VOCAB - 1).all()
    losses = [(r["step"], r["loss"]) for r in records(job) if "loss" in r]
    assert [step for step, _ in losses] == list(range(100)), "steps were lost or logged twice"
    mean = np.mean([loss for step, loss in losses if step < bad])
    assert max(loss for step, loss in losses if step >= bad) < 3 * mean


def test_a_run_without_rollbacks_stops_at_a_spike_and_says_what_helps(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, rows=Poisoned, train=SPIKY)
    bad = first_spike(job)
    with pytest.raises(FloatingPointError, match=rf"the loss of step {bad} is .* times") as caught:
        fit(job, random_params(CLASSIC))
    assert "--set test.rollbacks=3" in str(caught.value)
    assert (job.folder / f"diverged-{bad}.npz").exists()
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() == bad // 10 * 10, "the step that diverged was saved"


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(3, id="before the next checkpoint"),
        pytest.param(13, id="after it", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_after_a_rollback_resumes_like_one_left_alone(
    tmp_path: Path, rows: int
) -> None:
    train = replace(SPIKY, rollbacks=2)
    alone = tiny_job(tmp_path / "alone", rows=Poisoned, train=train)
    want = fit(alone, random_params(CLASSIC))
    bad = first_spike(alone)
    assert 100 - bad >= 10, "no room to show anything"
    # first to the spike (with what is read ahead), then from the checkpoint before it
    Failing.left = bad + 1 + AHEAD + bad % 10 + rows
    with pytest.raises(ConnectionError):
        fit(tiny_job(tmp_path / "ended", rows=Failing, train=train), random_params(CLASSIC))
    assert (tmp_path / "ended" / "stage" / f"diverged-{bad}.npz").exists()
    job = tiny_job(tmp_path / "ended", rows=Poisoned, train=train)
    assert hash_params(fit(job, random_params(CLASSIC)).params) == hash_params(want.params)
    assert records(job) == records(alone)


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(
    tmp_path: Path, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tiny_job(tmp_path)
    with pytest.raises(Interrupted):
        fit(tiny_job(tmp_path, rows=stopping_at(11)), random_params(CLASSIC))
    newest = max(int(path.name) for path in (job.folder / "checkpoints").iterdir())
    files = sorted((job.folder / "checkpoints" / str(newest)).rglob("d/*"))
    data = bytearray(max(files, key=lambda path: path.stat().st_size).read_bytes())
    data[len(data) // 2] ^= 1
    max(files, key=lambda path: path.stat().st_size).write_bytes(data)
    assert_same_run(job, fit(job, random_params(CLASSIC)), whole)
    printed = capsys.readouterr().out
    assert f"checkpoints/{newest} cannot be read" in printed
    assert "and step 5 is used" in printed
    assert (job.folder / f"damaged-checkpoint-{newest}").is_dir()


@pytest.mark.parametrize(
    ("batch_tokens", "micro_rows", "shards", "plan"),
    [
        (524_288, 32, 8, (1, 256)),
        (524_288, 32, 1, (8, 32)),
        (524_288, 512, 8, (1, 256)),  # micro-batches are no larger than the step
        (16_384, 2, 4, (1, 8)),
        (32_768, 1, 8, (2, 8)),
    ],
)
def test_a_step_is_divided_into_micro_batches(
    batch_tokens: int, micro_rows: int, shards: int, plan: tuple[int, int]
) -> None:
    train = TrainConfig(batch_tokens=batch_tokens, micro_rows=micro_rows)
    assert plan_batch(train, 2048, shards) == plan


@pytest.mark.parametrize(
    ("batch_tokens", "micro_rows", "shards", "said"),
    [
        (5_000, 1, 1, "batch_tokens is 5000, no multiple of the row's 2048 tokens"),
        (1_024, 1, 1, "batch_tokens is 1024, no multiple of the row's 2048 tokens"),
        (2_048 * 6, 1, 4, "a step of 6 rows does not divide by the 4 devices"),
        (2_048 * 8, 3, 1, "a step of 8 rows is not a multiple of 3 rows .micro_rows 3 on 1"),
        (2_048 * 8, 3, 2, "a step of 8 rows is not a multiple of 6 rows .micro_rows 3 on 2"),
    ],
)
def test_a_step_that_does_not_divide_is_refused_with_the_numbers(
    batch_tokens: int, micro_rows: int, shards: int, said: str
) -> None:
    train = TrainConfig(batch_tokens=batch_tokens, micro_rows=micro_rows)
    with pytest.raises(ConfigError, match=said):
        plan_batch(train, 2048, shards)


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_a_step_that_does_not_divide_names_the_settings_of_its_stage(stage: str) -> None:
    with pytest.raises(ConfigError, match=rf"\({stage}\.micro_rows 3 on .*set {stage}\.micro_rows"):
        plan_batch(TrainConfig(batch_tokens=2_048 * 8, micro_rows=3), 2048, 1, stage)
    with pytest.raises(ConfigError, match=rf"^{stage}\.batch_tokens is 5000"):
        plan_batch(TrainConfig(batch_tokens=5_000, micro_rows=1), 2048, 1, stage)
    with pytest.raises(ConfigError, match=rf"set {stage}\.batch_tokens to a multiple"):
        plan_batch(TrainConfig(batch_tokens=2_048 * 6, micro_rows=1), 2048, 4, stage)


def test_fewer_held_out_rows_than_a_batch_are_measured_as_they_are_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = replace(TRAIN, steps=1)
    write_tiny_rows(tmp_path / "held_out", 3, seed=7)
    found = {}
    for micro, shape in ((1, (1, 1, 1)), (1, (8, 1, 1))):
        folder = tmp_path / f"{micro} {shape[0]}"
        shutil.copytree(tmp_path / "held_out", folder / "held_out")
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: shape[0]])
        job = tiny_job(folder, mesh=mesh, train=replace(train, micro_rows=micro))
        found[micro, shape[0]] = fit(job, random_params(CLASSIC)).bits_per_byte
        few = "test: bits per byte are of 3 held-out rows, fewer than the"
        assert (few in capsys.readouterr().out) == (micro * shape[0] > 3)
    assert found[1, 8] == pytest.approx(found[1, 1], rel=1e-5)


def test_steps_left_open_are_one_pass_over_the_rows(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)  # 50 rows, 8 a step
    assert count_steps(replace(TRAIN, steps=0), job.rows) == 6
    assert count_steps(replace(TRAIN, steps=0, batch_tokens=64 * T), job.rows) == 1
    assert count_steps(TRAIN, job.rows) == 12
