"""The one loop of pretraining, midtraining and SFT.

A loop is killed and started again without a trace: its whole state (parameters, optimizer, step) is
in the newest checkpoint, and the data of a step depends on nothing but the step's number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.checkpoints.save import Checkpoints
from jaxchat.config.schema import (
    DEFAULT_COMPUTE,
    ComputeConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from jaxchat.data.loader import (
    HeldOutRows,
    RowSource,
    ShardedRows,
    prefetched,
    training_batches,
    validation_batches,
)
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.bpb import bits_per_byte, check_bytes
from jaxchat.model.capabilities import choose_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.optim.warm_start import carry_over
from jaxchat.parallel.mesh import announce, batch_shards, put_batch, row_share
from jaxchat.parallel.stop_consensus import Agreement
from jaxchat.progress import Progress
from jaxchat.signals import Interrupted, stop_requests
from jaxchat.train.divergence import DivergenceError, Judge, data_index, keep_batch
from jaxchat.train.metrics import MetricsLog, read_metrics
from jaxchat.train.oom import explained, step_of
from jaxchat.train.profiling.capture import Capture, recorded
from jaxchat.train.step import TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Before:
    """A stage that is complete, with its optimizer, whose last checkpoint is still there."""

    folder: Path
    optim: OptimConfig

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are, or were."""
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Job:
    """What one training stage works on."""

    title: str
    folder: Path  # checkpoints and metrics.jsonl go here
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    rows: RowSource | ShardedRows
    held_out: RowSource | HeldOutRows
    token_bytes: np.ndarray  # [V]
    mesh: Mesh
    seed: int
    dtype: DTypeLike = jnp.float32
    compute: ComputeConfig = DEFAULT_COMPUTE
    profile: Capture | None = None  # steps to record
    trackers: tuple[str, ...] = ()  # that get the metrics too
    # (steps done, parameters, which it only reads) -> what else is logged, for all processes alike
    probe: Callable[[int, Any], dict[str, Any]] | None = None
    before: Before | None = None  # the stage whose optimizer's averages this one starts with


@dataclass(frozen=True)
class FitResult:
    """What came out of a training stage."""

    params: Any
    steps: int
    tokens: int
    loss: float  # mean of the last tenth of the steps
    bits_per_byte: float  # on the held-out rows, at the end
    seconds: float  # of training, over all sessions that were interrupted


def plan_batch(
    train: TrainConfig, row_tokens: int, shards: int, stage: str = ""
) -> tuple[int, int]:
    """(A, rows): A micro-batches of `rows` rows over all shards make one step.

    Raises ConfigError, with the numbers and the settings of the `stage`, when they do not divide.
    """
    table = stage and f"{stage}."
    rows, rest = divmod(train.batch_tokens, row_tokens)
    if rest or rows == 0:
        raise ConfigError(
            f"{table}batch_tokens is {train.batch_tokens}, no multiple of the row's {row_tokens} "
            "tokens; set it to one."
        )
    if rows % shards:
        raise ConfigError(
            f"a step of {rows} rows does not divide by the {shards} devices of the batch axes; "
            f"set {table}batch_tokens to a multiple of {shards * row_tokens}, or [mesh] to fewer "
            "devices."
        )
    micro = min(train.micro_rows * shards, rows)
    if rows % micro:
        raise ConfigError(
            f"a step of {rows} rows is not a multiple of {micro} rows ({table}micro_rows "
            f"{train.micro_rows} on {shards} devices); set {table}micro_rows to a divisor of "
            f"{rows // shards}."
        )
    return rows // micro, micro


def count_steps(train: TrainConfig, rows: RowSource | ShardedRows) -> int:
    """The stage's steps: as configured, or one pass over the rows."""
    rows_per_step = train.batch_tokens // (rows.manifest.row_tokens - 1)
    return train.steps or max(1, len(rows) // max(rows_per_step, 1))


def fit(job: Job, params: Any) -> FitResult:
    """Trains `params` for the job's steps, from its newest checkpoint when there is one.

    Raises Interrupted after saving when SIGTERM, SIGUSR1 or SIGINT comes (to any of several
    processes: all stop at the same step), OutOfMemory, with the micro_rows that would fit, where a
    device cannot hold a step, FloatingPointError where the loss diverges (see `divergence`), and
    ArtifactError for held-out rows in which nothing is predicted.
    """
    time_axis = job.rows.manifest.row_tokens - 1
    accumulation, micro = plan_batch(job.train, time_axis, batch_shards(job.mesh), job.title)
    step = step_of(
        job.model, job.optim, job.mesh, job.dtype,
        time=time_axis, micro=micro, accumulation=accumulation,
        chunk_rows=job.compute.loss_chunk_rows,
    )  # fmt: skip
    with explained(job.title, step):
        return _fit(job, params)


def _fit(job: Job, params: Any) -> FitResult:
    time_axis = job.rows.manifest.row_tokens - 1
    accumulation, rows = plan_batch(job.train, time_axis, batch_shards(job.mesh), job.title)
    steps = count_steps(job.train, job.rows)
    compute = choose_compute(job.compute, job.model, job.dtype, job.mesh.size)
    announce(job.title, compute, job.mesh)
    optimizer = make_optimizer(
        job.model, job.optim, steps, lr_scale=job.train.lr_scale, muon_dtype=compute.muon_dtype
    )
    step_fn = make_train_step(job.model, optimizer, job.mesh, compute)
    share = row_share(job.mesh)
    batches = training_batches(job.rows, accumulation * rows, job.seed, *share)
    held_out = _held_out(job, rows, share)

    def evaluate(state: TrainState) -> float:
        return bits_per_byte(state.params, held_out, job.token_bytes, job.model, compute, job.mesh)

    def batch_of(index: int) -> Any:
        flat = batches[index]
        split = {k: v.reshape(accumulation, -1, *v.shape[1:]) for k, v in flat.items()}
        return put_batch(job.mesh, split)

    def begin() -> TrainState:
        # A copy: the first step donates its state, and the caller may still need its parameters.
        return init_state(jax.tree.map(jnp.copy, params), optimizer, job.mesh)

    kept = Checkpoints(job.folder / "checkpoints", job.train.keep, job.train.keep_every)
    with kept as checkpoints, stop_requests() as request:
        several = jax.process_count() > 1
        stop = Agreement(job.mesh, request) if several else request
        # One of several that did not wait for its data would leave the others waiting for it.
        give_up = (lambda: 0) if several else request
        skipped: frozenset[int] = frozenset()
        while True:
            loop, state = _resumed(job, checkpoints, begin(), steps, skipped)
            try:
                with recorded(step_fn, job.profile, loop.done) as run_step:
                    state = loop.run(
                        run_step, state, batch_of, evaluate, checkpoints, stop, give_up
                    )
                result = loop.result(state.params, evaluate)
                stop()  # of several processes, the next call tells what they were told at this one
                if asked := stop():  # after the last step, which is saved
                    raise Interrupted(asked)
                return result
            except DivergenceError as error:
                skipped = _without(job, loop.skipped, error, batches)
                checkpoints.wait()
            finally:
                loop.log.close()


def _held_out(job: Job, rows: int, share: tuple[int, int]) -> list[dict[str, Any]]:
    """The batches of `rows` held-out rows, or one with fewer where there are fewer."""
    there = min(len(job.held_out), job.train.eval_rows)
    batches = list(validation_batches(job.held_out, rows, there, *share))
    if there < rows and jax.process_index() == 0:
        print(
            f"{job.title}: bits per byte are of {there} held-out row{'s' * (there > 1)}, fewer "
            f"than the {rows} that are taken at once ({job.title}.micro_rows)",
            flush=True,
        )
    if jax.process_count() == 1:  # of several, one may have masked rows only
        check_bytes(batches, job.token_bytes, _other_rows(job.title))
    return batches


def _other_rows(stage: str) -> str:
    """What to do where nothing is predicted in a stage's held-out rows."""
    if stage == "base":
        return "give other text, of which the last file is held out"
    return (
        "no held-out conversation has a reply that is learned and begins within a row: raise "
        f"model.sequence_len, or name other conversations in {stage}.epochs (the last of a file "
        f"are held out) or {stage}.mixture"
    )


def _resumed(
    job: Job, checkpoints: Checkpoints, state: TrainState, steps: int, skipped: frozenset[int]
) -> tuple[_Loop, TrainState]:
    """The loop and the state of the newest checkpoint, or of the start, less further batches."""
    start, before = 0, 0.0
    if (newest := checkpoints.restore_newest(state)) is not None:
        state, meta = newest
        start, before = int(meta["step"]), float(meta["seconds"])
        skipped |= frozenset(meta.get("skipped", ()))
    elif job.before is not None:
        state = _warm(job, state, job.before)
    first = jax.process_index() == 0
    path = job.folder / "metrics.jsonl"
    losses = [r["loss"] for r in read_metrics(path) if "loss" in r and r["step"] < start]
    log = MetricsLog(path, from_step=start, writes=first, trackers=job.trackers)
    judge = Judge(job.train.spike, losses)
    return _Loop(job, log, judge, steps, start, before, skipped), state


def _warm(job: Job, state: TrainState, before: Before) -> TrainState:
    """A state at step 0 whose optimizer has the averages of the stage before."""
    optimizer = make_optimizer(job.model, before.optim, 1)  # its schedules do not matter here
    with Checkpoints(before.checkpoints) as checkpoints:
        found = checkpoints.restore_newest(init_state(state.params, optimizer, job.mesh))
    if found is None:
        raise ArtifactError(
            f"{job.title} starts with the optimizer of the stage before, and there is no "
            f"checkpoint in {before.checkpoints}; make that stage again with --force, or set "
            f"{job.title}_optim.warm_start=false."
        )
    return state._replace(opt_state=carry_over(state.opt_state, found[0].opt_state))


def _without(
    job: Job, skipped: frozenset[int], error: DivergenceError, batches: Any
) -> frozenset[int]:
    """The batches to leave out from now on. Raises FloatingPointError where the stage is to stop.

    The batch is kept in a file either way.
    """
    index = data_index(error.step, skipped)
    path = keep_batch(job.folder, error.step, batches[index])
    if len(skipped) >= job.train.rollbacks:
        table = "optim" if job.title == "base" else f"{job.title}_optim"
        lower = f"lower the rates ([{table}] matrix_lr, embedding_lr)"
        tried = f" after {len(skipped)} batches were left out" if skipped else ""
        other = f", or leave such batches out with --set {job.title}.rollbacks=3,"
        other = "" if skipped else other
        raise FloatingPointError(
            f"{job.title}: {error.reason}{tried}; its batch is in {path}. Please {lower}{other} "
            "and give the command again."
        ) from error
    print(
        f"{job.title}: {error.reason}; it goes back to its last checkpoint and leaves that batch "
        f"out, which is in {path}",
        flush=True,
    )
    return skipped | {index}


class _Loop:
    """The steps of `fit`; it reads the metrics of a step after the next was dispatched."""

    def __init__(
        self,
        job: Job,
        log: MetricsLog,
        judge: Judge,
        steps: int,
        start: int,
        before: float,
        skipped: frozenset[int],
    ) -> None:
        self.job, self.log, self.judge, self.steps = job, log, judge, steps
        self.before, self.began = before, time.monotonic()
        self.skipped = skipped  # batches that are left out
        self.done = self.saved = start
        self.pending: tuple[int, Any] | None = None
        self.bpb: float | None = None
        self.progress = Progress(job.title, steps, "step", start)

    def run(
        self,
        run_step: Callable[[TrainState, Any], tuple[TrainState, Any]],
        state: TrainState,
        batch_of: Callable[[int], Any],
        evaluate: Callable[[TrainState], float],
        checkpoints: Checkpoints,
        stop: Callable[[], int],
        give_up: Callable[[], int],
    ) -> TrainState:
        """Trains to the end. Raises Interrupted, after saving, when it was asked to stop.

        `stop` is asked once a step, `give_up` while there is no data.
        """
        train, skipped = self.job.train, self.skipped

        def save() -> None:
            if self.done > self.saved:
                self.flush()
                meta = {"seconds": self.seconds(), "skipped": sorted(skipped)}
                checkpoints.save(self.done, state, meta)
                self.saved = self.done

        def batch_of_step(step: int) -> Any:
            return batch_of(data_index(step, skipped))

        left, asked = range(self.done, self.steps), 0
        with self.progress, prefetched(batch_of_step, left, give_up=give_up) as ahead:
            try:
                for batch in ahead:
                    state, metrics = run_step(state, batch)
                    self.dispatched(self.done, metrics)
                    self.done += 1
                    if self.done % train.eval_every == 0 or self.done == self.steps:
                        self.evaluated(self.done, evaluate(state))
                    if self.job.probe is not None and self.done < self.steps:
                        self.probed(self.done, self.job.probe(self.done, state.params))
                    if self.done % train.save_every == 0 or self.done == self.steps:
                        save()
                    if asked := stop():
                        break
            except ArtifactError:  # there is no more data, but what was learned from it is kept
                save()
                if not give_up():  # else a scheduler has stopped what prepares it, too
                    raise
            if self.done < self.steps:  # asked to stop, perhaps while it waited for data
                save()
                checkpoints.wait()
                raise Interrupted(asked or give_up())
        self.flush()
        return state

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def time(self) -> float:
        """Seconds of training over all sessions, as the log has them."""
        return round(self.seconds(), 3)

    def dispatched(self, step: int, metrics: Any) -> None:
        previous, self.pending = self.pending, (step, metrics)
        if previous:
            self._record(*previous)

    def flush(self) -> None:
        if self.pending:
            self._record(*self.pending)
            self.pending = None

    def _record(self, step: int, metrics: Any) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self.judge.check(step, values)
        told = {"step": step, "steps": self.steps, "time": self.time()}
        self.log.write({**told, **values})
        rate = self.progress.rate() * self.job.train.batch_tokens
        self.progress.update(step + 1, f"{rate:,.0f} tok/s loss {values['loss']:.3f}")

    def evaluated(self, done: int, bpb: float) -> None:
        self.flush()
        self.bpb = bpb
        self.log.write({"step": done - 1, "time": self.time(), "bits_per_byte": bpb})

    def probed(self, done: int, found: dict[str, Any]) -> None:
        if found:
            self.flush()
            self.log.write({"step": done - 1, "time": self.time(), **found})

    def result(self, params: Any, evaluate: Callable[[Any], float]) -> FitResult:
        losses = [r["loss"] for r in read_metrics(self.log.path) if "loss" in r]
        tail = losses[-max(1, len(losses) // 10) :]
        bpb = self.bpb
        if bpb is None:  # everything had been done before this session
            bpb = evaluate(TrainState(params, None, jnp.zeros([], jnp.int32)))
        return FitResult(
            params=params,
            steps=self.steps,
            tokens=self.steps * self.job.train.batch_tokens,
            loss=float(np.mean(tail)),
            bits_per_byte=bpb,
            seconds=self.seconds(),
        )
