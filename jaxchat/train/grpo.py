"""Reinforcement learning: the simplified GRPO.

On policy, so there is no ratio and nothing to clip; no reference model and no KL term (`advantages`
has the formula). The loss is a mean over the sampled tokens of the step, or of the means over those
of each `loss_group` samples of a problem, as nanochat's micro-batches have it. Prompt and forced
tool tokens carry no loss. With `top_k` samples are drawn from the likeliest tokens only, but log p
stays the model's over all tokens: what is raised or lowered is the probability that the model
gives, as in nanochat, and the step is on policy but for the tail that was cut off. A step in which
all rewards of every problem are equal has no signal, and is left out: its gradient is zero, but
momentum and decay would move the weights.

Source: GRPO (DeepSeekMath, arXiv 2402.03300) without what DAPO (arXiv 2503.14476) and Dr. GRPO
(arXiv 2503.20783) drop, as in nanochat.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxchat.config.schema import RLConfig
from jaxchat.evals.chat import Sampling, sampled_right
from jaxchat.evals.scores import pass_rates
from jaxchat.inference.service import Service
from jaxchat.model.backend import bucket, memory_used
from jaxchat.parallel.mesh import batch_shards, put_batch, row_share
from jaxchat.signals import Interrupted
from jaxchat.tasks import Task
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.train.divergence import DivergenceError, save_batch
from jaxchat.train.first_step import Exhausted
from jaxchat.train.micro_rows import fewer_rows, first_rows
from jaxchat.train.oom import explained
from jaxchat.train.rollouts import (
    MIN_ROW,
    Rollouts,
    make_batch,
    plan_rows,
    rollout_metrics,
    sample_rollouts,
)
from jaxchat.train.session import Session, TrainingJob
from jaxchat.train.step import TrainState


@dataclass(frozen=True, kw_only=True)
class RLJob(TrainingJob):
    """A stage that samples answers to a task's problems and learns from their rewards."""

    title: str = "rl"
    config: RLConfig
    task: Task
    tokenizer: Tokenizer
    engine: Service


@dataclass(frozen=True)
class RLResult:
    """The trained parameters and how the rewards went."""

    params: Any
    rewards: list[float]  # mean reward of each step's rollouts
    skipped: int  # steps without signal
    pass_rates: dict[str, dict[str, float]]  # "first" and "last" -> k -> pass@k, where evaluated
    seconds: float
    micro_rows: int  # rows that a device took at once, in the last session


def advantages(
    rewards: Float[np.ndarray, "problems samples"],
) -> Float[np.ndarray, "problems samples"]:
    """A[i, j] = r[i, j] - mean_j r[i, j] of problem i's sample j.

    Not divided by the rewards' deviation, as in Dr. GRPO.
    """
    return np.asarray(rewards - rewards.mean(axis=1, keepdims=True))


def train_rl(job: RLJob, params: Any) -> RLResult:
    """Trains `params` on rewards, from the newest checkpoint when there is one.

    Raises Interrupted after saving when SIGTERM, SIGUSR1 or SIGINT comes, and FloatingPointError
    for a loss or gradient that is not finite. A first step that a device cannot hold is tried again
    with fewer rows (see `micro_rows`); for what it cannot hold then or later, OutOfMemory is
    raised.
    """
    config = job.config
    rollouts = config.problems_per_step * config.samples_per_problem
    single = plan_rows(rollouts, 1, batch_shards(job.mesh))
    engine = memory_used(jax.local_devices()[0])  # it samples beside
    rows = first_rows(job, config.micro_rows, (*single, job.model.sequence_len), engine)
    with Session(job, config.steps, lr_scale=config.lr_scale) as session:
        while True:
            try:
                return _train_rl(job, session, params, rows)
            except Exhausted as error:
                rows = fewer_rows(job, config.micro_rows, error)
            gc.collect()  # what the traceback held: a state and its batch


def _train_rl(job: RLJob, session: Session, params: Any, micro_rows: int) -> RLResult:
    """Likewise, with `micro_rows` a device. Raises Exhausted for the first step."""
    config = job.config
    state, meta = session.resume(params)
    loop = _Loop(job, session, meta, micro_rows)
    with session.running() as run_step:
        while session.done < config.steps:
            try:
                rollouts = loop.sample(state)
                state = loop.train(run_step, state, rollouts)
                if number := session.stop():
                    raise Interrupted(number)
            except Interrupted:
                session.save(state, loop.meta())
                session.checkpoints.wait()
                raise
    with session.at_once():
        if config.eval_every:
            give_weights(job.engine, state)
            loop.evaluate("last")
    return RLResult(
        state.params, loop.rewards, loop.skipped, loop.pass_rates, session.seconds(), micro_rows
    )


def give_weights(engine: Service, state: TrainState) -> None:
    """Gives the engine a copy of the weights, in its dtype: the next step donates the state."""
    dtype = engine.compute.dtype
    engine.set_params(jax.tree.map(lambda x: x.astype(dtype, copy=True), state.params))


class _Loop:
    """The two halves of a step of `train_rl`, and what they have found so far."""

    def __init__(
        self, job: RLJob, session: Session, meta: Mapping[str, Any], micro_rows: int
    ) -> None:
        """`meta` is what the newest checkpoint was saved with."""
        self.job, self.session, self.micro_rows = job, session, micro_rows
        self.rewards: list[float] = list(meta.get("rewards", []))
        self.skipped = int(meta.get("skipped", 0))
        self.pass_rates: dict[str, dict[str, float]] = dict(meta.get("pass_rates", {}))

    def meta(self) -> dict[str, Any]:
        """The part of a checkpoint's meta that `__init__` reads."""
        # copies: it is written in the background
        rewards, rates = list(self.rewards), dict(self.pass_rates)
        return {"rewards": rewards, "skipped": self.skipped, "pass_rates": rates}

    def sample(self, state: TrainState) -> Rollouts:
        """A step's rollouts, after an evaluation where it is due. A signal may end it at once."""
        job, step = self.job, self.session.done
        give_weights(job.engine, state)
        with self.session.at_once():  # a step's samples depend on nothing but the state
            if job.config.eval_every and step % job.config.eval_every == 0:
                self.evaluate("last" if step else "first")
            return sample_rollouts(
                job.engine, job.tokenizer, job.task, job.config, seed=job.seed, step=step
            )

    def evaluate(self, when: str) -> None:
        """Logs pass@k of held-out problems with the engine's weights."""
        job, config = self.job, self.job.config
        how = Sampling(config.max_new_tokens, config.eval_samples, 1.0, job.seed, config.top_k)
        right = sampled_right(
            job.engine, job.tokenizer, job.task, problems=config.eval_problems, sampling=how
        )
        rates = {str(k): rate for k, rate in pass_rates(right, config.eval_samples).items()}
        self.pass_rates[when] = rates  # text, as JSON has the keys
        found = {f"pass@{k}": round(rate, 6) for k, rate in rates.items()}
        self.session.write({"step": self.session.done}, found)

    def train(
        self, run_step: Callable[..., Any], state: TrainState, rollouts: Rollouts
    ) -> TrainState:
        """The state after a step on rollouts, logged and saved where it is due.

        Raises FloatingPointError where the step diverges.
        """
        session, config, began = self.session, self.job.config, time.monotonic()
        values = {"loss": 0.0, "weight": 0.0, "grad_norm": 0.0}
        advantage = advantages(rollouts.rewards)
        signal = bool(advantage.any())
        if signal:
            batch = self.make_batch(rollouts, advantage)
            count, rows, row_tokens = batch["tokens"].shape
            with explained(self.job, (count, rows * row_share(self.job.mesh)[1], row_tokens - 1)):
                placed = put_batch(self.job.mesh, batch)
                with session.first_step(state, placed) as awaited:
                    state, metrics = awaited(run_step(state, placed))
                values = {name: float(value) for name, value in metrics.items()}
            self.check(values, batch)
        else:
            state = state._replace(step=state.step + 1)
        seconds = round(time.monotonic() - began, 4)
        sampled = rollout_metrics(rollouts)
        self.rewards.append(sampled["reward"])
        self.skipped += not signal
        trained = {**values, "skipped": not signal, "train_seconds": seconds}
        session.write({"step": session.done}, sampled | trained)
        session.done += 1
        session.progress.update(
            session.done,
            f"reward {sampled['reward']:.3f}, entropy {sampled['entropy']:.3f}, "
            f"{sampled['length']:.0f} tokens, {sampled['no_signal']:.0%} without signal",
        )
        if session.done % config.save_every == 0 or session.done == config.steps:
            session.save(state, self.meta())
        return state

    def make_batch(self, rollouts: Rollouts, advantage: np.ndarray) -> dict[str, np.ndarray]:
        """This process's part of the micro-batches [A, B, ...] of a step."""
        job, (index, parts) = self.job, row_share(self.job.mesh)
        shards = batch_shards(job.mesh)
        count, rows = plan_rows(rollouts.rewards.size, self.micro_rows, shards)
        row_tokens = bucket(rollouts.longest - 1, MIN_ROW, job.model.sequence_len) + 1
        batch = make_batch(
            rollouts, advantage, row_tokens, count * rows, job.tokenizer.bos,
            job.config.samples_averaged,
        )  # fmt: skip
        share = slice(index * rows // parts, (index + 1) * rows // parts)
        return {k: v.reshape(count, rows, *v.shape[1:])[:, share] for k, v in batch.items()}

    def check(self, values: Mapping[str, float], batch: Mapping[str, Any]) -> None:
        """Raises FloatingPointError, and saves the batch, where a metric is not finite.

        Nothing can be left out instead: the samples come from the weights themselves.
        """
        step = self.session.done
        try:
            self.session.detector.check(step, values)
        except DivergenceError as error:
            path = save_batch(self.job.folder, step, batch)
            raise FloatingPointError(
                f"rl: {error.reason}; its batch is in {path}. Please lower rl.lr_scale and give "
                "the command again."
            ) from error
