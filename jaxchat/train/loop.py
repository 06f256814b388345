"""The one loop of pretraining, midtraining and SFT."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxchat.checkpoints.save import Checkpoints
from jaxchat.config.schema import OptimConfig, TrainConfig
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
from jaxchat.model.vocabulary import check_ids
from jaxchat.optim.optimizer import carry_over, make_optimizer
from jaxchat.parallel.mesh import batch_shards, put_batch, row_share
from jaxchat.signals import Interrupted
from jaxchat.train.divergence import DivergenceError, data_index, save_batch
from jaxchat.train.first_step import Exhausted
from jaxchat.train.micro_rows import fewer_rows, first_rows
from jaxchat.train.oom import explained
from jaxchat.train.session import Session, TrainingJob
from jaxchat.train.step import TrainState, init_state


@dataclass(frozen=True)
class PreviousStage:
    """A complete stage whose last checkpoint, with its optimizer, still exists."""

    folder: Path
    optim: OptimConfig

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints, which may be gone."""
        return self.folder / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class FitJob(TrainingJob):
    """A stage that predicts the next token of rows."""

    train: TrainConfig
    rows: RowSource | ShardedRows
    held_out: RowSource | HeldOutRows
    token_bytes: np.ndarray  # [V]
    # (steps done, parameters, which it only reads) -> further metrics, the same for all processes
    probe: Callable[[int, Any], dict[str, Any]] | None = None
    before: PreviousStage | None = None  # whose optimizer's averages this stage starts with


@dataclass(frozen=True)
class FitResult:
    """The trained parameters and the stage's final figures."""

    params: Any
    steps: int
    tokens: int
    loss: float  # mean of the last tenth of the steps
    bits_per_byte: float  # on the held-out rows, at the end
    seconds: float  # of training, over all sessions that were interrupted
    micro_rows: int  # rows that a device took at once, in the last session


def plan_batch(
    train: TrainConfig, row_tokens: int, shards: int, stage: str = ""
) -> tuple[int, int]:
    """(A, rows): A micro-batches of `rows` rows over all shards make one step.

    With micro_rows "auto" those of one row a shard, of which others are made.
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
    at_once = 1 if isinstance(train.micro_rows, str) else train.micro_rows
    micro = min(at_once * shards, rows)
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


def fit(job: FitJob, params: Any) -> FitResult:
    """Trains `params` for the job's steps, from its newest checkpoint when there is one.

    Raises Interrupted after saving when SIGTERM, SIGUSR1 or SIGINT comes (to any of several
    processes: all stop at the same step), FloatingPointError where the loss diverges (see
    `divergence`), and ArtifactError for held-out rows in which nothing is predicted. A first step
    that a device cannot hold is tried again with fewer rows (see `micro_rows`); for what it cannot
    hold then or later, OutOfMemory is raised.
    """
    train, row_tokens = job.train, job.rows.manifest.row_tokens - 1
    plan_batch(train, row_tokens, batch_shards(job.mesh), job.title)  # what cannot be fails now
    single = _batch(job, 1)
    rows = first_rows(job, train.micro_rows, (*single, row_tokens))
    with Session(
        job,
        count_steps(train, job.rows),
        lr_scale=train.lr_scale,
        spike=train.spike,
        keep=train.keep,
        keep_every=train.keep_every,
    ) as session:
        loop = _Loop(job, session, rows)
        while True:
            try:
                with explained(job, (*_batch(job, loop.micro_rows), row_tokens)):
                    return loop.finish(loop.train(loop.resume(params)))
            except DivergenceError as error:
                loop.leave_out(error)
                session.checkpoints.wait()
            except Exhausted as error:
                loop = _Loop(job, session, fewer_rows(job, train.micro_rows, error))
            gc.collect()  # what the traceback held: a state and its batches


def _batch(job: FitJob, micro_rows: int) -> tuple[int, int]:
    """The micro-batches of a step and the rows of each, with `micro_rows` a device."""
    train, row_tokens = replace(job.train, micro_rows=micro_rows), job.rows.manifest.row_tokens - 1
    return plan_batch(train, row_tokens, batch_shards(job.mesh), job.title)


def _held_out(job: FitJob, rows: int, share: tuple[int, int]) -> list[dict[str, Any]]:
    """The batches of `rows` held-out rows, or one with fewer where there are fewer."""
    there = min(len(job.held_out), job.train.eval_rows)
    batches = list(validation_batches(job.held_out, rows, there, *share))
    for batch in batches:
        check_ids(batch["tokens"], job.model.vocab_size, f"a held-out row of {job.title}")
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
    """Advice where nothing is predicted in a stage's held-out rows."""
    if stage == "base":
        return "give other text, of which the last file is held out"
    return (
        "no held-out conversation has a reply that is learned and begins within a row: raise "
        f"model.sequence_len, or name other conversations in {stage}.epochs (the last of a file "
        f"are held out) or {stage}.mixture"
    )


def _warm(job: FitJob, state: TrainState, before: PreviousStage) -> TrainState:
    """A state at step 0 whose optimizer has the averages of the previous stage."""
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


class _Loop:
    """The steps of `fit`; it reads the metrics of a step after the next was dispatched."""

    def __init__(self, job: FitJob, session: Session, micro_rows: int) -> None:
        share = row_share(job.mesh)
        self.job, self.session, self.micro_rows = job, session, micro_rows
        self.accumulation, rows = _batch(job, micro_rows)
        self.batches = training_batches(job.rows, self.accumulation * rows, job.seed, *share)
        self.held_out = _held_out(job, rows, share)
        self.skipped: frozenset[int] = frozenset()  # batches that are left out

    def resume(self, params: Any) -> TrainState:
        """The state of the newest checkpoint, or at step 0."""
        self.pending: tuple[int, Any] | None = None
        self.bpb: float | None = None
        state, meta = self.session.resume(params)
        self.skipped |= frozenset(meta.get("skipped", ()))
        if not meta and self.job.before is not None:
            state = _warm(self.job, state, self.job.before)
        return state

    def train(self, state: TrainState) -> TrainState:
        """The state after the last step. Raises Interrupted, after saving, on a signal.

        Raises Exhausted where the session's first step finds no memory.
        """
        session, train, number = self.session, self.job.train, 0
        steps = range(session.done, session.steps)
        with (
            session.running() as run_step,
            prefetched(self.batch_of, steps, give_up=session.give_up) as batches,
        ):
            try:
                for batch in batches:
                    with session.first_step(state, batch) as awaited:
                        state, metrics = awaited(run_step(state, batch))
                    self.dispatched(session.done, metrics)
                    session.done += 1
                    is_last = session.done == session.steps
                    if session.done % train.eval_every == 0 or is_last:
                        self.bpb = self.evaluate(state.params)
                        self.log({"bits_per_byte": self.bpb})
                    if self.job.probe is not None and not is_last:
                        self.log(self.job.probe(session.done, state.params))
                    if session.done % train.save_every == 0 or is_last:
                        self.save(state)
                    if number := session.stop():
                        break
            except ArtifactError:  # there is no more data, but what was learned from it is saved
                self.save(state)
                if not session.give_up():  # else a scheduler has stopped what prepares it, too
                    raise
            if session.done < session.steps:  # stopped, perhaps while it waited for data
                self.save(state)
                session.checkpoints.wait()
                raise Interrupted(number or session.give_up())
        self.flush()
        return state

    def batch_of(self, step: int) -> Any:
        """A step's batch [A, B, T+1] on the mesh."""
        flat = self.batches[data_index(step, self.skipped)]
        check_ids(flat["tokens"], self.job.model.vocab_size, f"a row of {self.job.title}")
        split = {k: v.reshape(self.accumulation, -1, *v.shape[1:]) for k, v in flat.items()}
        return put_batch(self.job.mesh, split)

    def evaluate(self, params: Any) -> float:
        """Bits per byte of the held-out rows."""
        job = self.job
        return bits_per_byte(
            params, self.held_out, job.token_bytes, job.model, self.session.compute, job.mesh
        )

    def save(self, state: TrainState) -> None:
        if self.session.done > self.session.saved:
            self.flush()  # a step that diverged is never saved
            self.session.save(state, {"skipped": sorted(self.skipped)})

    def dispatched(self, step: int, metrics: Any) -> None:
        previous, self.pending = self.pending, (step, metrics)
        if previous:
            self._record(*previous)

    def flush(self) -> None:
        if self.pending:
            self._record(*self.pending)
            self.pending = None

    def _record(self, step: int, metrics: Any) -> None:
        session, values = self.session, {name: float(value) for name, value in metrics.items()}
        session.detector.check(step, values)
        session.write({"step": step, "steps": session.steps}, values)
        rate = session.progress.rate() * self.job.train.batch_tokens
        tokens = f"{rate:,.0f} tok/s " if rate else ""  # of the first step, most is compiling
        session.progress.update(step + 1, f"{tokens}loss {values['loss']:.3f}")

    def log(self, found: dict[str, Any]) -> None:
        """Logs what was found after the newest step, behind that step's metrics."""
        if found:
            self.flush()
            self.session.write({"step": self.session.done - 1}, found)

    def leave_out(self, error: DivergenceError) -> None:
        """Leaves a batch out from now on. Raises FloatingPointError where the stage is to stop.

        The batch is saved to a file either way.
        """
        job, skipped = self.job, self.skipped
        index = data_index(error.step, skipped)
        path = save_batch(job.folder, error.step, self.batches[index])
        if len(skipped) >= job.train.rollbacks:
            table = "optim" if job.title == "base" else f"{job.title}_optim"
            lower = f"lower the rates ([{table}] matrix_lr, embedding_lr)"
            tried = f" after {len(skipped)} batches were left out" if skipped else ""
            other = f", or leave such batches out with --set {job.title}.rollbacks=3,"
            raise FloatingPointError(
                f"{job.title}: {error.reason}{tried}; its batch is in {path}. Please {lower}"
                f"{'' if skipped else other} and give the command again."
            ) from error
        print(
            f"{job.title}: {error.reason}; it goes back to its last checkpoint and leaves that "
            f"batch out, which is in {path}",
            flush=True,
        )
        self.skipped |= {index}

    def finish(self, state: TrainState) -> FitResult:
        """The result, after the last step, which is saved. Raises Interrupted on a signal."""
        session = self.session
        losses = session.losses()
        if self.bpb is None:  # every step had been done before this session
            self.bpb = self.evaluate(state.params)
        result = FitResult(
            params=state.params,
            steps=session.steps,
            tokens=session.steps * self.job.train.batch_tokens,
            loss=float(np.mean(losses[-max(1, len(losses) // 10) :])),
            bits_per_byte=self.bpb,
            seconds=session.seconds(),
            micro_rows=self.micro_rows,
        )
        session.stop()  # of several processes, the next call has the outcome of this one
        if number := session.stop():
            raise Interrupted(number)
        return result
