"""Reinforcement learning: its pieces by hand, and a task on which the reward has to rise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxchat.config import ConfigError, MeshConfig, ModelConfig, OptimConfig, RLConfig
from jaxchat.infer.engine import Completion, Engine
from jaxchat.model import gpt
from jaxchat.sharding import make_mesh
from jaxchat.tasks import Problem
from jaxchat.tasks.base import Split, say
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat import Part
from jaxchat.train.checkpoint import hash_params
from jaxchat.train.metrics import read_metrics
from jaxchat.train.rl import RLJob, advantages, bucket, make_batch, train_rl

CONFIG = RLConfig(
    steps=20,
    problems_per_step=4,
    samples_per_problem=8,
    max_new_tokens=2,
    micro_rows=16,
    lr_scale=3.0,
    save_every=4,
)


def test_an_advantage_is_the_reward_less_its_groups_mean() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    expected = [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [-0.25, -0.25, -0.25, 0.75]]
    np.testing.assert_array_equal(advantages(rewards), expected)


def test_only_sampled_tokens_carry_a_loss_and_ids_are_those_sampled() -> None:
    tool = Completion((5, 6, 7, 8), (1, 0, 0, 1), (-1.0, 0.0, 0.0, -1.0), "stop")
    short = Completion((9,), (1,), (-1.0,), "stop")
    batch = make_batch([[1, 2]], [[tool, short]], np.array([[0.5, -0.5]]), 7, pad=0)
    assert batch["tokens"].tolist() == [[1, 2, 5, 6, 7, 8, 0], [1, 2, 9, 0, 0, 0, 0]]
    assert batch["mask"].tolist() == [[0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]
    assert batch["advantage"].tolist() == [0.5, -0.5]


def test_a_rollout_beyond_the_row_loses_its_tail() -> None:
    long = Completion((5, 6, 7, 8), (1, 1, 1, 1), (-1.0,) * 4, "length")
    batch = make_batch([[1, 2]], [[long]], np.array([[0.0]]), 4, pad=0)
    assert batch["tokens"].tolist() == [[1, 2, 5, 6]]
    assert batch["mask"].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(("longest", "size"), [(1, 64), (64, 64), (65, 128), (200, 250)])
def test_rows_come_in_few_lengths(longest: int, size: int) -> None:
    assert bucket(longest, limit=250) == size


class Early:
    """Rewards a reply that begins in the first half of the bytes: half of them do at first."""

    name = "early"

    def problem(self, split: Split, index: int) -> Problem:
        return Problem(self.name, str(index), say(f"{split} {index % 5}", "a"), "a")

    def grade(self, problem: Problem, parts: Sequence[Part]) -> bool:
        del problem
        return bool(parts) and parts[0]["text"][:1] < "N"


def make_job(folder: Path, config: RLConfig = CONFIG) -> tuple[RLJob, gpt.Params]:
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
    model = ModelConfig(tokenizer.vocab_size, 64, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
    params = gpt.init_params(jax.random.key(0), model)
    job = RLJob(
        folder=folder,
        model=model,
        optim=OptimConfig(),
        config=config,
        task=Early(),
        tokenizer=tokenizer,
        mesh=make_mesh(MeshConfig(), jax.devices()[:1]),
        engine=Engine(params, model, tokenizer, slots=32, steps_per_dispatch=2),
        seed=0,
    )
    return job, params


@pytest.mark.usefixtures("optax_promotion")
def test_the_reward_rises_and_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    job, params = make_job(tmp_path / "whole")
    whole = train_rl(job, params)
    first, last = np.mean(whole.rewards[:2]), np.mean(whole.rewards[-2:])
    assert last > first + 0.2, f"the reward went from {first:.2f} to {last:.2f}: {whole.rewards}"
    # No session trains further than the newest checkpoint: take the last one away and go on.
    job, params = make_job(tmp_path / "whole")
    newest = tmp_path / "whole" / "checkpoints" / "20"
    newest.rename(tmp_path / "taken away")
    resumed = train_rl(job, params)
    assert resumed.rewards == whole.rewards
    assert hash_params(resumed.params) == hash_params(whole.params)
    times = [record["time"] for record in read_metrics(job.folder / "metrics.jsonl")]
    assert len(times) == len(whole.rewards)
    assert times == sorted(times), "the time of the session before was forgotten"


def test_rollouts_that_do_not_divide_are_refused_with_the_numbers(tmp_path: Path) -> None:
    config = RLConfig(problems_per_step=3, samples_per_problem=5, micro_rows=4)
    job, params = make_job(tmp_path, config)
    with pytest.raises(ConfigError, match="15 rollouts"):
        train_rl(job, params)
