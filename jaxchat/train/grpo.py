"""Reinforcement learning: the simplified GRPO.

On policy, so there is no ratio and nothing to clip; no reference model and no KL term; an advantage
is a reward less the mean of its group, not divided by its deviation; the loss is a mean over the
sampled tokens of the step, or of the means over those of each `loss_group` samples of a problem, as
nanochat's micro-batches have it. Prompt and forced tool tokens carry no loss. With `top_k` samples
are drawn from the likeliest tokens only, but log p stays the model's over all tokens: what is
raised or lowered is the probability that the model gives, as in nanochat, and the step is on policy
but for the tail that was cut off. A step in which all
rewards of every problem are equal says nothing, and is left out: its gradient is zero, but momentum
and decay would move the weights.

Source: GRPO (DeepSeekMath, arXiv 2402.03300) without what DAPO (arXiv 2503.14476) and Dr. GRPO
(arXiv 2503.20783) drop, as in nanochat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.checkpoints.save import Checkpoints
from jaxchat.config.memory import Step
from jaxchat.config.schema import DEFAULT_COMPUTE, ComputeConfig, ModelConfig, OptimConfig, RLConfig
from jaxchat.evals.chat import pass_rates, sampled_right
from jaxchat.inference.service import Service
from jaxchat.model.backend import bucket
from jaxchat.model.capabilities import choose_compute
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import announce, batch_shards, put_batch, row_share
from jaxchat.parallel.stop_consensus import Agreement
from jaxchat.progress import Progress
from jaxchat.signals import Interrupted, StopRequest, stop_requests
from jaxchat.tasks import Task
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.train.divergence import DivergenceError, Judge, keep_batch
from jaxchat.train.metrics import MetricsLog
from jaxchat.train.oom import explained, step_of
from jaxchat.train.profiling.capture import Capture, recorded
from jaxchat.train.rollouts import (
    MIN_ROW,
    Rollouts,
    figures,
    make_batch,
    plan_rows,
    sample_rollouts,
)
from jaxchat.train.step import TrainState, init_state, make_train_step


@dataclass(frozen=True)
class RLJob:
    """What reinforcement learning works on."""

    folder: Path
    model: ModelConfig
    optim: OptimConfig
    config: RLConfig
    task: Task
    tokenizer: Tokenizer
    mesh: Mesh
    engine: Service
    seed: int
    dtype: DTypeLike = jnp.float32
    compute: ComputeConfig = DEFAULT_COMPUTE
    profile: Capture | None = None  # steps to record
    trackers: tuple[str, ...] = ()  # that get the metrics too


@dataclass(frozen=True)
class RLResult:
    """What came out."""

    params: Any
    rewards: list[float]  # mean reward of each step's rollouts
    skipped: int  # steps without signal
    pass_rates: dict[str, dict[int, float]]  # "first" and "last" -> k -> pass@k, where evaluated
    seconds: float


def train_rl(job: RLJob, params: Any) -> RLResult:
    """Trains `params` on rewards, from the newest checkpoint when there is one.

    Raises Interrupted after saving when SIGTERM, SIGUSR1 or SIGINT comes, OutOfMemory, with the
    micro_rows that would fit, where a device cannot hold a step, and FloatingPointError for a loss
    or gradient that is not finite.
    """
    config = job.config
    compute = choose_compute(job.compute, job.model, job.dtype, job.mesh.size)
    announce("rl", compute, job.mesh)
    optimizer = make_optimizer(
        job.model, job.optim, config.steps, lr_scale=config.lr_scale,
        muon_dtype=compute.muon_dtype,
    )  # fmt: skip
    step_fn = make_train_step(job.model, optimizer, job.mesh, compute)
    params = jax.tree.map(jnp.copy, params)
    state = init_state(params, optimizer, job.mesh)

    kept = Checkpoints(job.folder / "checkpoints")
    with kept as checkpoints, stop_requests() as stop, ExitStack() as stack:
        start, session = 0, _Session(job)
        if (newest := checkpoints.restore_newest(state)) is not None:
            state, meta = newest
            start, session = int(meta["step"]), _Session(job, meta)
        leads = jax.process_index() == 0
        log = stack.enter_context(
            MetricsLog(
                job.folder / "metrics.jsonl", from_step=start, writes=leads, trackers=job.trackers
            )
        )
        progress = Progress("rl", config.steps, "step", start)
        with progress, recorded(step_fn, job.profile, start) as run_step:
            saved = start
            several = jax.process_count() > 1
            agreed: Callable[[], int] = Agreement(job.mesh, stop) if several else int  # 0
            for step in range(start, config.steps):
                give_weights(job.engine, state)
                try:
                    with _at_once(stop):  # a step's samples depend on nothing but the state
                        if config.eval_every and step % config.eval_every == 0:
                            when = "last" if step else "first"
                            log.write({"step": step, **session.evaluate(when)})
                        rollouts = sample_rollouts(
                            job.engine, job.tokenizer, job.task, config, seed=job.seed, step=step
                        )
                except Interrupted:
                    if step > saved:
                        checkpoints.save(step, state, session.meta())
                    checkpoints.wait()
                    raise
                state, trained = _train(job, step, run_step, state, rollouts)
                log.write({"step": step, **session.record(figures(rollouts), trained)})
                progress.update(step + 1, session.note)
                done = step + 1
                if done % config.save_every == 0 or done == config.steps:
                    checkpoints.save(done, state, session.meta())
                    saved = done
                if asked := agreed():
                    if done > saved:
                        checkpoints.save(done, state, session.meta())
                    checkpoints.wait()
                    raise Interrupted(asked)
        with _at_once(stop):
            if config.eval_every:
                give_weights(job.engine, state)
                log.write({"step": config.steps, **session.evaluate("last")})
    return session.result(state.params)


def _at_once(stop: StopRequest) -> AbstractContextManager[None]:
    """Where a stop may come at any moment; of several processes none may leave the others alone."""
    return stop.at_once() if jax.process_count() == 1 else nullcontext()


def give_weights(engine: Service, state: TrainState) -> None:
    """Gives the engine a copy of the weights, in its dtype: the next step donates the state."""
    dtype = engine.compute.dtype
    engine.set_params(jax.tree.map(lambda x: x.astype(dtype, copy=True), state.params))


def _train(
    job: RLJob, step: int, run_step: Callable[..., Any], state: TrainState, rollouts: Rollouts
) -> tuple[TrainState, dict[str, Any]]:
    """The state after a step on rollouts, and its metrics; without a signal, the state it was.

    Raises FloatingPointError where the step diverges.
    """
    began = time.monotonic()
    values = {"loss": 0.0, "weight": 0.0, "grad_norm": 0.0}
    signal = bool(rollouts.advantages.any())
    if signal:
        count, rows = plan_rows(
            rollouts.rewards.size, job.config.micro_rows, batch_shards(job.mesh)
        )
        row = bucket(rollouts.longest - 1, MIN_ROW, job.model.sequence_len)
        batch = make_batch(
            rollouts, row + 1, count * rows, job.tokenizer.bos, job.config.samples_averaged
        )
        index, parts = row_share(job.mesh)
        share = slice(index * rows // parts, (index + 1) * rows // parts)
        split = {k: v.reshape(count, rows, *v.shape[1:])[:, share] for k, v in batch.items()}
        with explained("rl", _planned(job, row, rows, count)):
            state, metrics = run_step(state, put_batch(job.mesh, split))
            values = {name: float(value) for name, value in metrics.items()}
        _judge(job, step, values, split)
    else:
        state = state._replace(step=state.step + 1)
    seconds = round(time.monotonic() - began, 4)
    return state, {**values, "skipped": not signal, "train_seconds": seconds}


def _judge(job: RLJob, step: int, values: Mapping[str, float], batch: Mapping[str, Any]) -> None:
    """Raises FloatingPointError, and keeps the batch, where something of a step is not finite.

    There is nothing to leave out and go on with: the samples come from the weights themselves.
    """
    try:
        Judge(spike=0.0).check(step, values)
    except DivergenceError as error:
        path = keep_batch(job.folder, step, batch)
        raise FloatingPointError(
            f"rl: {error.reason}; its batch is in {path}. Please lower rl.lr_scale and give the "
            "command again."
        ) from error


def _planned(job: RLJob, time: int, micro: int, accumulation: int) -> Step:
    """The step, to say what it needs where there is no room for it."""
    return step_of(
        job.model, job.optim, job.mesh, job.dtype,
        time=time, micro=micro, accumulation=accumulation, chunk_rows=job.compute.loss_chunk_rows,
    )  # fmt: skip


class _Session:
    """The bookkeeping of `train_rl`: what happened in this session and those before it."""

    def __init__(self, job: RLJob, meta: Mapping[str, Any] = MappingProxyType({})) -> None:
        """`meta` is what the newest checkpoint was saved with."""
        self.job, self.began = job, time.monotonic()
        self.before = float(meta.get("seconds", 0.0))
        self.rewards: list[float] = list(meta.get("rewards", []))
        self.skipped = int(meta.get("skipped", 0))
        # JSON has turned the numbers k into text
        rates = meta.get("pass_rates", {})
        self.rates = {at: {int(k): v for k, v in found.items()} for at, found in rates.items()}
        self.note = ""

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def meta(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "seconds": self.seconds(),
            "rewards": list(self.rewards),  # it is written in the background
            "skipped": self.skipped,
            "pass_rates": {at: {str(k): v for k, v in f.items()} for at, f in self.rates.items()},
        }

    def evaluate(self, when: str) -> dict[str, Any]:
        """Pass@k of held-out problems with the engine's weights, as the log has it."""
        job, samples = self.job, self.job.config.eval_samples
        right = sampled_right(
            job.engine, job.tokenizer, job.task, problems=job.config.eval_problems,
            samples=samples, max_tokens=job.config.max_new_tokens, top_k=job.config.top_k,
            seed=job.seed,
        )  # fmt: skip
        rates = pass_rates(right, samples)
        self.rates[when] = rates
        told = {f"pass@{k}": round(rate, 6) for k, rate in rates.items()}
        return {"time": round(self.seconds(), 3), **told}

    def record(self, sampled: dict[str, float], trained: dict[str, Any]) -> dict[str, Any]:
        """What the log has of a step; `note` then tells the most important of it."""
        self.rewards.append(sampled["reward"])
        self.skipped += trained["skipped"]
        self.note = (
            f"reward {sampled['reward']:.3f}, entropy {sampled['entropy']:.3f}, "
            f"{sampled['length']:.0f} tokens, {sampled['no_signal']:.0%} without signal"
        )
        return {"time": round(self.seconds(), 3), **sampled, **trained}

    def result(self, params: Any) -> RLResult:
        return RLResult(params, self.rewards, self.skipped, self.rates, self.seconds())
