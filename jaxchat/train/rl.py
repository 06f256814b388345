"""Reinforcement learning: the simplified GRPO.

On policy, so there is no ratio and nothing to clip; no reference model and no KL term; an advantage
is a reward less the mean of its group, not divided by its deviation; the loss is normalised over
the sampled tokens of the step. Prompt and forced tool tokens carry no loss.

Source: GRPO (DeepSeekMath, arXiv 2402.03300) without what DAPO (arXiv 2503.14476) and Dr. GRPO
(arXiv 2503.20783) drop, as in nanochat.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxchat.config import (
    DEFAULT_COMPUTE,
    ComputeConfig,
    ConfigError,
    ModelConfig,
    OptimConfig,
    RLConfig,
)
from jaxchat.data.prepare import FIRST_INDEX
from jaxchat.evals.chat import answer, parts_of, prompt_of
from jaxchat.infer.request import Completion
from jaxchat.infer.service import Service
from jaxchat.memory import Step
from jaxchat.optim.chain import make_optimizer
from jaxchat.profiling.capture import Capture, recorded
from jaxchat.progress import Progress
from jaxchat.sharding import batch_shards, put_batch
from jaxchat.tasks import Problem, Task
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.train.checkpoint import Checkpoints
from jaxchat.train.compute import choose_compute
from jaxchat.train.exhausted import explained, step_of
from jaxchat.train.fit import Interrupted, stop_requests
from jaxchat.train.metrics import MetricsLog
from jaxchat.train.step import init_state, make_train_step


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


@dataclass(frozen=True)
class RLResult:
    """What came out."""

    params: Any
    rewards: list[float]  # mean reward of each step's rollouts
    seconds: float


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Rewards [problems, samples] less each problem's mean."""
    mean: np.ndarray = rewards.mean(axis=1, keepdims=True)
    return np.asarray(rewards - mean)


def make_batch(
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Completion]],
    advantage: np.ndarray,
    row_tokens: int,
    pad: int,
) -> dict[str, np.ndarray]:
    """Rollouts as rows: `tokens` and `mask` [N, row_tokens], `advantage` [N].

    The ids are those that were sampled, never decoded and encoded again. A rollout beyond the row's
    end loses its tail.
    """
    count = advantage.size
    tokens = np.full((count, row_tokens), pad, np.int32)
    mask = np.zeros((count, row_tokens), np.float32)
    rollouts = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    for row, (prompt, completion) in enumerate(rollouts):
        ids = [*prompt, *completion.tokens][:row_tokens]
        flags = [0] * len(prompt) + list(completion.mask)
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = flags[: len(ids)]
    return {"tokens": tokens, "mask": mask, "advantage": advantage.reshape(-1).astype(np.float32)}


def bucket(longest: int, limit: int) -> int:
    """The row length for rollouts of at most `longest` tokens: few shapes, so few compilations."""
    size = 64
    while size < longest:
        size *= 2
    return min(size, limit)


def train_rl(job: RLJob, params: Any) -> RLResult:
    """Trains `params` on rewards, from the newest checkpoint when there is one.

    Raises Interrupted after saving when SIGTERM or SIGINT comes, and OutOfMemory, with the
    micro_rows that would fit, where a device cannot hold a step.
    """
    config = job.config
    rows = config.problems_per_step * config.samples_per_problem
    micro = min(config.micro_rows * batch_shards(job.mesh), rows)
    if rows % micro or micro % batch_shards(job.mesh):
        raise ConfigError(
            f"a step of {rows} rollouts does not divide into micro-batches of {micro} over "
            f"{batch_shards(job.mesh)} devices; change [rl] problems_per_step or micro_rows."
        )
    optimizer = make_optimizer(
        job.model, job.optim, config.steps, lr_scale=config.lr_scale, muon_dtype=job.dtype
    )
    compute = choose_compute(job.compute, job.model, job.dtype, job.mesh.size)
    compute.announce("rl", job.mesh)
    step_fn = make_train_step(job.model, optimizer, job.mesh, compute)
    params = jax.tree.map(jnp.copy, params)
    state = init_state(params, optimizer, job.mesh)
    began, before, start = time.monotonic(), 0.0, 0
    rewards: list[float] = []

    with Checkpoints(job.folder / "checkpoints") as checkpoints, stop_requests() as stop:
        if (latest := checkpoints.latest()) is not None:
            state, meta = checkpoints.restore(latest, state)
            start, before, rewards = latest, float(meta["seconds"]), list(meta["rewards"])
        log = MetricsLog(job.folder / "metrics.jsonl", from_step=start)
        progress = Progress("rl", config.steps, "step", start)
        with progress, recorded(step_fn, job.profile, start) as run_step:
            for step in range(start, config.steps):
                # The engine gets a copy: the step below donates the state it reads.
                job.engine.set_params(jax.tree.map(jnp.copy, state.params))
                batch, reward = rollouts(job, step)
                split = {k: v.reshape(rows // micro, micro, *v.shape[1:]) for k, v in batch.items()}
                row = split["tokens"].shape[-1] - 1
                with explained("rl", _planned(job, row, micro, rows // micro)):
                    state, metrics = run_step(state, put_batch(job.mesh, split))
                    values = {name: float(value) for name, value in metrics.items()}
                rewards.append(reward)
                trained = round(before + time.monotonic() - began, 3)
                log.write({"step": step, "time": trained, "reward": reward, **values})
                progress.update(step + 1, f"reward {reward:.3f}")
                done = step + 1
                stopping = stop()  # once: a signal between two looks would stop without saving
                if done % config.save_every == 0 or done == config.steps or stopping:
                    seconds = before + time.monotonic() - began
                    checkpoints.save(done, state, {"seconds": seconds, "rewards": rewards})
                if stopping and done < config.steps:
                    checkpoints.wait()
                    raise Interrupted(stopping)
    return RLResult(state.params, rewards, before + time.monotonic() - began)


def _planned(job: RLJob, time: int, micro: int, accumulation: int) -> Step:
    """The step, to say what it needs where there is no room for it."""
    return step_of(
        job.model, job.optim, job.mesh, job.dtype,
        time=time, micro=micro, accumulation=accumulation, chunk_rows=job.compute.loss_chunk_rows,
    )  # fmt: skip


def rollouts(job: RLJob, step: int) -> tuple[dict[str, np.ndarray], float]:
    """The batch of one step, sampled with the current weights, and its mean reward."""
    config = job.config
    first = FIRST_INDEX["rl"] + step * config.problems_per_step
    problems = [job.task.problem("train", first + i) for i in range(config.problems_per_step)]
    groups = answer(
        job.engine, job.tokenizer, problems, max_tokens=config.max_new_tokens,
        temperature=config.temperature, samples=config.samples_per_problem,
        seed=(job.seed * config.steps + step) * config.problems_per_step,
    )  # fmt: skip
    rewards = np.array([_grade(job, p, group) for p, group in zip(problems, groups, strict=True)])
    prompts = [prompt_of(problem, job.tokenizer) for problem in problems]
    longest = max(
        len(prompt) + len(completion.tokens)
        for prompt, group in zip(prompts, groups, strict=True)
        for completion in group
    )
    row = bucket(longest - 1, job.model.sequence_len) + 1
    batch = make_batch(prompts, groups, advantages(rewards), row, job.tokenizer.bos)
    return batch, float(rewards.mean())


def _grade(job: RLJob, problem: Problem, group: Sequence[Completion]) -> list[float]:
    return [float(job.task.grade(problem, parts_of(c, job.tokenizer))) for c in group]
