"""Reinforcement learning: a task on which the reward has to rise, skipped steps, exact resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_rl
from tiny_rl import CONFIG as TINY
from tiny_rl import MODEL, TOKENIZER, Even, lively_params, make_engine, tiny_job

from jaxchat.checkpoints.save import Checkpoints, hash_params
from jaxchat.config.schema import ComputeConfig, MeshConfig, ModelConfig, OptimConfig, RLConfig
from jaxchat.evals.chat import Sampling, answer
from jaxchat.inference.engine import Engine
from jaxchat.inference.request import Request
from jaxchat.model import gpt
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.signals import Interrupted
from jaxchat.tasks import Problem
from jaxchat.tasks.base import Split, say
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.chat_format import Part, parse_completion
from jaxchat.train.grpo import RLJob, RLResult, advantages, give_weights, train_rl
from jaxchat.train.metrics import read_metrics
from jaxchat.train.rollouts import sample_rollouts
from jaxchat.train.step import init_state, make_train_step

CONFIG = RLConfig(
    steps=20,
    problems_per_step=4,
    samples_per_problem=8,
    max_new_tokens=2,
    micro_rows=16,
    lr_scale=3.0,
    save_every=4,
    eval_every=0,
)


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


class Asked(Engine):
    """Keeps what it is asked."""

    def generate(self, requests: Sequence[Request], progress: Any = None) -> Any:
        self.requests = [*getattr(self, "requests", []), *requests]
        return super().generate(requests, progress)


@pytest.mark.usefixtures("optax_promotion")
def test_rollouts_and_pass_at_k_are_sampled_alike_and_the_loss_is_by_groups(tmp_path: Path) -> None:
    config = replace(TINY, steps=1, top_k=4, loss_group=3)
    engine = make_engine(lively_params(), kind=Asked)
    rollouts = sample_rollouts(engine, TOKENIZER, Even(), config, seed=0, step=0)
    engine.requests = []  # type: ignore[attr-defined]
    plain = ComputeConfig(products="plain")  # log p as the engine has it
    job = replace(tiny_job(tmp_path, config), engine=engine, compute=plain)
    train_rl(job, lively_params())
    asked = [(request.n, request.top_k, request.temperature) for request in engine.requests]  # type: ignore[attr-defined]
    of_problems, of_rollouts = TINY.eval_problems * [(2, 4, 1.0)], 3 * [(6, 4, 1.0)]
    assert asked == [*of_problems, *of_rollouts, *of_problems]

    (loss,) = [r["loss"] for r in read_metrics(job.folder / "metrics.jsonl") if "loss" in r]
    samples = list(zip(rollouts.completions, advantages(rollouts.rewards).reshape(-1), strict=True))
    sums = [-advantage * sum(c.logprobs) for c, advantage in samples]
    tokens = [sum(c.mask) for c, _ in samples]
    means = [sum(sums[i : i + 3]) / sum(tokens[i : i + 3]) for i in range(0, 18, 3)]
    assert loss == pytest.approx(sum(means) / 6, rel=1e-4)
    assert loss != pytest.approx(sum(sums) / sum(tokens), rel=1e-2)


@pytest.mark.usefixtures("optax_promotion")
def test_the_reward_rises_and_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    job, params = make_job(tmp_path / "whole")
    whole = train_rl(job, params)
    first, last = np.mean(whole.rewards[:2]), np.mean(whole.rewards[-2:])
    assert last > first + 0.2, f"the reward went from {first:.2f} to {last:.2f}: {whole.rewards}"
    # No session trains further than the newest checkpoint: take the last one away and resume.
    job, params = make_job(tmp_path / "whole")
    newest = tmp_path / "whole" / "checkpoints" / "20"
    newest.rename(tmp_path / "taken away")
    resumed = train_rl(job, params)
    assert resumed.rewards == whole.rewards
    assert hash_params(resumed.params) == hash_params(whole.params)
    times = [record["time"] for record in read_metrics(job.folder / "metrics.jsonl")]
    assert len(times) == len(whole.rewards)
    assert times == sorted(times), "the time of the session before was forgotten"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[RLJob, RLResult]:
    """A run of 8 steps with evaluations, left alone."""
    job = tiny_job(tmp_path_factory.mktemp("alone"))
    with jax.numpy_dtype_promotion("standard"):
        return job, train_rl(job, lively_params())


def test_the_log_shows_how_the_policy_fares(alone: tuple[RLJob, RLResult]) -> None:
    job, result = alone
    records = [r for r in read_metrics(job.folder / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in records] == list(range(8))
    assert [r["reward"] for r in records] == result.rewards
    for record in records:
        assert set(record) == {
            "step", "time", "reward", "entropy", "length", "at_limit", "no_signal",
            "sample_seconds", "rollout_tokens_per_second", "train_seconds", "skipped", "loss",
            "weight", "grad_norm",
        }  # fmt: skip
        assert all(np.isfinite(value) for value in record.values())


def test_pass_at_k_is_evaluated_before_the_first_step_along_the_way_and_at_the_end(
    alone: tuple[RLJob, RLResult],
) -> None:
    job, result = alone
    records = [r for r in read_metrics(job.folder / "metrics.jsonl") if "pass@1" in r]
    assert [r["step"] for r in records] == [0, 3, 6, 8]
    assert set(result.pass_rates) == {"first", "last"}
    for record, found in ((records[0], "first"), (records[-1], "last")):
        assert {k: record[f"pass@{k}"] for k in ("1", "2")} == pytest.approx(
            result.pass_rates[found]
        )
    # by hand, with the weights it began with
    groups = answer(
        make_engine(lively_params()), TOKENIZER, [Even().problem("test", i) for i in range(4)],
        Sampling(max_tokens=20, temperature=1.0, samples=2, seed=0),
    )  # fmt: skip
    right = [
        [
            Even().grade(Even().problem("test", 0), parse_completion(c.tokens, TOKENIZER))
            for c in group
        ]
        for group in groups
    ]
    assert records[0]["pass@1"] == np.mean(right)
    assert records[0]["pass@2"] == np.mean([any(group) for group in right])


@pytest.mark.usefixtures("optax_promotion")
def test_evaluating_changes_nothing_that_is_trained(
    alone: tuple[RLJob, RLResult], tmp_path: Path
) -> None:
    job = tiny_job(tmp_path, replace(TINY, eval_every=0))
    result = train_rl(job, lively_params())
    assert hash_params(result.params) == hash_params(alone[1].params)
    assert not result.pass_rates


@pytest.mark.usefixtures("optax_promotion")
def test_a_step_without_signal_leaves_weights_and_momentum_bit_for_bit(tmp_path: Path) -> None:
    """No problem from the fifth step on can be solved."""
    config = replace(TINY, steps=7, save_every=4, eval_every=0)
    job = tiny_job(tmp_path, config, Even(until=4 * config.problems_per_step))
    result = train_rl(job, lively_params())
    records = read_metrics(job.folder / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [False] * 4 + [True] * 3
    assert result.skipped == 3
    assert [r["step"] for r in records] == list(range(7))
    assert all(r["loss"] == r["grad_norm"] == 0 and r["no_signal"] == 1 for r in records[4:])
    like = init_state(lively_params(), make_optimizer(MODEL, job.optim, 7, lr_scale=1.0), job.mesh)
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        before, after = (checkpoints.restore(step, like)[0] for step in (4, 7))
    momentum = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(before.opt_state))
    assert momentum > 1, "nothing would have moved the weights anyway"
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, before.opt_state)
    assert (before.step, after.step) == (4, 7)


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_step_that_diverges_stops_it_unsaved_and_its_batch_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A gradient that is no number spoils the weights, whatever the loss was."""

    def make_poisoned(*arguments: Any) -> Any:
        healthy = make_train_step(*arguments)

        def step(state: Any, batch: Any) -> Any:
            after, metrics = healthy(state, batch)
            bad = {name: metrics[name] * float("nan")} if int(after.step) == 3 else {}
            return after, {**metrics, **bad}

        return step

    monkeypatch.setattr("jaxchat.train.session.make_train_step", make_poisoned)
    job = tiny_job(tmp_path, replace(TINY, save_every=1, eval_every=0))
    with pytest.raises(FloatingPointError, match=r"rl: the .* of step 2 is nan; its batch is in"):
        train_rl(job, lively_params())
    with Checkpoints(job.folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 2
    kept = np.load(job.folder / "diverged-2.npz")
    assert kept["tokens"].size == kept["mask"].size > 0


@pytest.mark.usefixtures("optax_promotion")
def test_the_engine_keeps_its_weights_when_a_step_donates_the_state(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    optimizer = make_optimizer(MODEL, job.optim, 4)
    state = init_state(lively_params(), optimizer, job.mesh)
    give_weights(job.engine, state)
    before = jax.device_get(job.engine.params)
    step = make_train_step(MODEL, optimizer, job.mesh)
    batch = {"tokens": np.ones((1, 2, 9), np.int32), "mask": np.ones((1, 2, 9), np.float32)}
    old = state.params
    step(state, put_batch(job.mesh, batch))
    assert all(x.is_deleted() for x in jax.tree.leaves(old)), "the step donated nothing"
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(job.engine.params))


@pytest.mark.usefixtures("optax_promotion")
def test_a_run_asked_to_stop_does_not_sample_to_the_end_and_saves(
    tmp_path: Path, alone: tuple[RLJob, RLResult]
) -> None:
    class Stopped(Engine):
        """Gets the signal in the third dispatch of step 5."""

        given, dispatches = -2, 0  # -1 is given by the constructor

        def set_params(self, params: Any) -> None:
            super().set_params(params)
            self.given, self.dispatches = self.given + 1, 0

        def step(self) -> bool:
            self.dispatches += 1
            if (self.given, self.dispatches) == (5, 3):
                os.kill(os.getpid(), signal.SIGUSR1)
                raise AssertionError("it went on sampling")
            return super().step()

    engine = make_engine(lively_params(), kind=Stopped)
    with pytest.raises(Interrupted, match="SIGUSR1") as caught:
        train_rl(replace(tiny_job(tmp_path), engine=engine), lively_params())
    assert caught.value.exit_code == 75
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 5, "save_every is 2, so step 5 was saved for the signal"
    result = train_rl(tiny_job(tmp_path), lively_params())
    assert result.rewards == alone[1].rewards
    assert result.pass_rates == alone[1].pass_rates
    assert hash_params(result.params) == hash_params(alone[1].params)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotion")
def test_a_run_killed_while_it_samples_saves_and_trains_ends_in_the_same_weights(
    tmp_path: Path, alone: tuple[RLJob, RLResult]
) -> None:
    for words in ("sampling 1", "saving 4", "saving 6", "step 7"):
        kill_at(tmp_path, words)
    job = tiny_job(tmp_path, replace(TINY, eval_every=0))
    result = train_rl(job, lively_params())
    assert result.rewards == alone[1].rewards
    assert hash_params(result.params) == hash_params(alone[1].params)
    steps = [r["step"] for r in read_metrics(job.folder / "metrics.jsonl")]
    assert steps == list(range(8))


def kill_at(folder: Path, words: str) -> None:
    """Trains in another process and SIGKILLs it where it says `words`, or once a step is logged."""
    process = subprocess.Popen(
        [sys.executable, tiny_rl.__file__, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    kind, number = words.split()
    for line in process.stdout:
        logged = {r["step"] for r in read_metrics(folder / "metrics.jsonl")}
        if line.strip() == words or (kind == "step" and int(number) in logged):
            break
    else:
        raise AssertionError(f"the training ended without {words!r}")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
