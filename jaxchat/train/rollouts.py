"""Rollouts: a step's problems, sampled, graded, and laid out as rows to train on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxchat.config.schema import RLConfig
from jaxchat.data.prepare import FIRST_INDEX
from jaxchat.evals.chat import Sampling, answer, prompts_of
from jaxchat.inference.request import Completion
from jaxchat.inference.service import Service
from jaxchat.paths import sha256_text
from jaxchat.tasks import Task
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import parse_completion

MIN_ROW = 128  # tokens of the shortest rows: each length is a program of its own


@dataclass(frozen=True)
class Rollouts:
    """A step's samples: a group of completions for every prompt."""

    prompts: Sequence[Sequence[int]]
    groups: Sequence[Sequence[Completion]]
    rewards: Float[np.ndarray, "problems samples"]
    seconds: float = 0.0  # of sampling and grading

    @property
    def pairs(self) -> list[tuple[Sequence[int], Completion]]:
        """Every prompt with each of its completions, group by group."""
        groups = zip(self.prompts, self.groups, strict=True)
        return [(prompt, completion) for prompt, group in groups for completion in group]

    @property
    def completions(self) -> list[Completion]:
        """All completions, group by group."""
        return [completion for _, completion in self.pairs]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(len(prompt) + len(completion.tokens) for prompt, completion in self.pairs)


def sample_rollouts(
    engine: Service, tokenizer: Tokenizer, task: Task, config: RLConfig, *, seed: int, step: int
) -> Rollouts:
    """The rollouts of a step with the engine's weights: they depend on seed and step alone."""
    began = time.monotonic()
    first = FIRST_INDEX["rl"] + step * config.problems_per_step
    problems = [task.problem("train", first + i) for i in range(config.problems_per_step)]
    sampling = Sampling(
        config.max_new_tokens, config.samples_per_problem, config.temperature,
        step_seed(seed, step), config.top_k,
    )  # fmt: skip
    groups = answer(engine, tokenizer, problems, sampling)
    rewards = [
        [float(task.grade(problem, parse_completion(one.tokens, tokenizer))) for one in group]
        for problem, group in zip(problems, groups, strict=True)
    ]
    prompts = prompts_of(engine, tokenizer, problems, config.max_new_tokens)
    return Rollouts(prompts, groups, np.array(rewards), time.monotonic() - began)


def step_seed(seed: int, step: int) -> int:
    """The seed of a step's first problem, of 32 bits: far from those of other runs and steps."""
    return int(sha256_text("rollouts", str(seed), str(step))[:8], 16)


def rollout_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Metrics that show whether the policy improves or collapses.

    `entropy` is the mean of -log p over the sampled tokens, in nats, where p is the model's at
    temperature 1 over all tokens: sampled at that temperature and from all (`top_k` 0), an unbiased
    estimate of the mean entropy of the distributions they were drawn from. `length` is in tokens,
    those of tools included; `at_limit` the share of completions that were cut off, `no_signal` that
    of groups whose rewards are equal.
    """
    completions = rollouts.completions
    sampled = sum(sum(completion.mask) for completion in completions)
    tokens = sum(len(completion.tokens) for completion in completions)
    return {
        "reward": float(rollouts.rewards.mean()),
        "entropy": -sum(sum(completion.logprobs) for completion in completions) / sampled,
        "length": tokens / len(completions),
        "at_limit": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "no_signal": float((np.ptp(rollouts.rewards, axis=1) == 0).mean()),
        "sample_seconds": round(rollouts.seconds, 4),
        "rollout_tokens_per_second": round(tokens / max(rollouts.seconds, 1e-9), 1),
    }


def make_batch(
    rollouts: Rollouts,
    advantages: Float[np.ndarray, "problems samples"],
    row_tokens: int,
    rows: int,
    pad: int,
    loss_group: int = 0,
) -> dict[str, np.ndarray]:
    """Rollouts as rows: `tokens` and `mask` [rows, row_tokens], `advantage` [rows].

    The mask is 1 for sampled tokens. With a `loss_group`, which divides the samples of a problem,
    it turns the mean over the mask into a mean over groups of that many rollouts, each a mean over
    its sampled tokens, which weigh 1 on average. The ids are those that were sampled, never decoded
    and encoded again. Rows beyond the rollouts have no mask and no advantage: they change nothing.
    A rollout beyond the row's end loses its tail. Those with an advantage come first: micro-batches
    of the others have no gradient to compute.
    """
    tokens = np.full((rows, row_tokens), pad, np.int32)
    mask = np.zeros((rows, row_tokens), np.float32)
    advantage = np.zeros(rows, np.float32)
    advantage[: advantages.size] = advantages.reshape(-1)
    for row, (prompt, completion) in enumerate(rollouts.pairs):
        ids = [*prompt, *completion.tokens][:row_tokens]
        flags = [0] * len(prompt) + list(completion.mask)
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = flags[: len(ids)]
    if loss_group:
        filled = mask[: advantages.size]
        filled *= _group_weights(filled.sum(axis=1), loss_group)[:, None]
    order = np.argsort(advantage == 0, stable=True)
    return {"tokens": tokens[order], "mask": mask[order], "advantage": advantage[order]}


def _group_weights(
    sampled: Float[np.ndarray, " rollouts"], group: int
) -> Float[np.ndarray, " rollouts"]:
    """The weight of each rollout's tokens, from how many were sampled."""
    of_group = sampled.reshape(-1, group).sum(axis=1)
    mean = of_group.sum() / max(np.count_nonzero(of_group), 1)
    return np.repeat(mean / np.maximum(of_group, 1), group).astype(np.float32)


def plan_rows(rollouts: int, micro_rows: int, shards: int) -> tuple[int, int]:
    """(A, rows): A micro-batches of `rows` rows over all shards hold a step's rollouts.

    No shard has more than `micro_rows` at once; fewer than A * shards rows stay empty.
    """
    count = -(-rollouts // (micro_rows * shards))
    return count, -(-rollouts // (count * shards)) * shards
