"""The session of a training stage: everything around its steps, for pretraining, SFT and RL alike.

A stage is killed and started again without a trace: its whole state (parameters, optimizer, step)
is in the newest checkpoint, and what a step is given depends on nothing but the step's number.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.checkpoints.save import Checkpoints
from jaxchat.config.schema import DEFAULT_COMPUTE, ComputeConfig, ModelConfig, OptimConfig
from jaxchat.model.backend import Compute
from jaxchat.model.capabilities import choose_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.consensus import highest
from jaxchat.progress import Progress
from jaxchat.signals import stop_requests
from jaxchat.train.divergence import SpikeDetector
from jaxchat.train.first_step import FirstStep
from jaxchat.train.metrics import MetricsLog, read_metrics
from jaxchat.train.profiling.capture import Capture, StepFn, recorded
from jaxchat.train.step import TrainState, init_state, make_train_step


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The fields that every training stage has."""

    title: str
    folder: Path  # of checkpoints and metrics.jsonl
    model: ModelConfig
    optim: OptimConfig
    mesh: Mesh
    seed: int
    dtype: DTypeLike = jnp.float32
    compute: ComputeConfig = DEFAULT_COMPUTE
    profile: Capture | None = None  # steps to record
    trackers: tuple[str, ...] = ()  # that receive the metrics, too


def make_step(
    job: TrainingJob, steps: int, lr_scale: float
) -> tuple[Compute, optax.GradientTransformation, Any]:
    """How a job is computed, its optimizer over `steps` steps, and its jitted step."""
    compute = choose_compute(job.compute, job.model, job.dtype, job.mesh.size)
    optimizer = make_optimizer(
        job.model, job.optim, steps, lr_scale=lr_scale, muon_dtype=compute.muon_dtype
    )
    return compute, optimizer, make_train_step(job.model, optimizer, job.mesh, compute)


class Session:
    """One process's work on a stage, from its newest checkpoint to the end or to a signal.

    Open it with `with`, then call `resume`. Several processes stop at the same step.
    """

    def __init__(
        self,
        job: TrainingJob,
        steps: int,
        *,
        lr_scale: float,
        spike: float = 0.0,
        keep: int = 2,
        keep_every: int = 0,
    ) -> None:
        """`spike` is that of `SpikeDetector`, `keep` and `keep_every` those of `Checkpoints`."""
        self.job, self.steps = job, steps
        self.compute, self.optimizer, self._step_fn = make_step(job, steps, lr_scale)
        if jax.process_index() == 0:
            line = self.compute.describe(list(job.mesh.devices.flat), job.mesh.shape)
            print(f"{job.title}: {line}", file=sys.stderr, flush=True)
        self.first_step = FirstStep(self._step_fn, job.mesh, job.title)
        self._spike, self._keep = spike, (keep, keep_every)
        self._log: MetricsLog | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        folder = self.job.folder / "checkpoints"
        self.checkpoints = self._open.enter_context(Checkpoints(folder, *self._keep))
        self._request = self._open.enter_context(stop_requests())
        self._several = jax.process_count() > 1
        # the number of the signal that any process received; call it once a step
        self.stop: Callable[[], int] = self._request
        if self._several:
            self.stop = StopConsensus(self.job.mesh, self._request)
        self._open.callback(self._close_log)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()

    def resume(self, params: Any) -> tuple[TrainState, dict[str, Any]]:
        """The state and meta of the newest checkpoint; without one, `params` at step 0 and {}.

        Metrics of later steps are dropped from the log. May be called again, to go back.
        """
        job = self.job
        # A copy: the first step donates its state, and the caller may still need its parameters.
        fresh = init_state(jax.tree.map(jnp.copy, params), self.optimizer, job.mesh)
        state, meta = self.checkpoints.restore_newest(fresh) or (fresh, dict[str, Any]())
        self.done = self.saved = int(meta.get("step", 0))
        self._before, self._began = float(meta.get("seconds", 0.0)), time.monotonic()
        self.progress = Progress(job.title, self.steps, "step", self.done, "compiling")
        self._close_log()
        path, leads = job.folder / "metrics.jsonl", jax.process_index() == 0
        losses = [r["loss"] for r in read_metrics(path) if "loss" in r and r["step"] < self.done]
        self.detector = SpikeDetector(self._spike, losses)
        self._log = MetricsLog(path, from_step=self.done, writes=leads, trackers=job.trackers)
        return state, meta

    @contextmanager
    def running(self) -> Iterator[StepFn]:
        """Yields the jitted step, which records the steps of `job.profile`; shows progress."""
        with recorded(self._step_fn, self.job.profile, self.done) as step, self.progress:
            yield step

    def seconds(self) -> float:
        """Seconds of training, over all sessions that were interrupted."""
        return self._before + time.monotonic() - self._began

    def write(self, record: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Appends to metrics.jsonl: `record`, the time, `values`."""
        assert self._log is not None, "call resume first"
        self._log.write({**record, "time": round(self.seconds(), 3), **values})

    def losses(self) -> list[float]:
        """The losses of all steps so far."""
        log = read_metrics(self.job.folder / "metrics.jsonl")
        return [record["loss"] for record in log if "loss" in record]

    def give_up(self) -> int:
        """The signal for which a wait for data may end; 0: none.

        One of several processes that did not wait would leave the others waiting for it.
        """
        return 0 if self._several else self._request()

    def at_once(self) -> AbstractContextManager[None]:
        """While open, a signal raises Interrupted there and then, unless others would be left."""
        return nullcontext() if self._several else self._request.at_once()

    def save(self, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts saving the steps that are done, if the newest checkpoint has fewer."""
        if self.done > self.saved:
            self.checkpoints.save(self.done, state, {"seconds": self.seconds(), **meta})
            self.saved = self.done


class StopConsensus:
    """The signal that any process received; called once a step, it returns the same to all.

    An all-reduce of the stop flag, one step late, so that several processes stop at the same step.

    A signal reaches the processes at different moments, or one of them only. The devices reduce
    every process's flag behind the step; the outcome of the step before is read, so that no process
    waits for it.
    """

    def __init__(self, mesh: Mesh, received: Callable[[], int]) -> None:
        """`received` is the number of this process's signal, or 0."""
        self._received = received
        self._highest = highest(mesh)
        self._pending: jax.Array | None = None

    def __call__(self) -> int:
        """The highest number of any process's signal at the call before; 0: none."""
        before, self._pending = self._pending, self._highest(self._received())
        return 0 if before is None else int(before)
