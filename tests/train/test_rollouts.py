"""Rollouts: the rows they become, and that what is trained on is what was sampled."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_rl import CONFIG, MODEL, TOKENIZER, Even, lively_params, make_engine
from whole_model import features, forward, logprobs_of

from jaxchat.config.schema import MeshConfig
from jaxchat.evals.chat import prompts_of
from jaxchat.inference.engine import Completion
from jaxchat.model import gpt
from jaxchat.model.backend import bucket
from jaxchat.model.loss import token_logprobs
from jaxchat.parallel.mesh import batch_shards, make_mesh, put_batch
from jaxchat.tasks.base import say
from jaxchat.tokenizer.chat_format import render_prompt
from jaxchat.train.grpo import advantages
from jaxchat.train.rollouts import (
    MIN_ROW,
    Rollouts,
    make_batch,
    plan_rows,
    rollout_metrics,
    sample_rollouts,
    step_seed,
)
from jaxchat.train.step import init_state, make_train_step

T = MODEL.sequence_len
TOOL = Completion((5, 6, 7, 8), (1, 0, 0, 1), (-1.0, 0.0, 0.0, -2.0), "stop")
SHORT = Completion((9,), (1,), (-0.5,), "length")


@cache
def sampled() -> Rollouts:
    """Rollouts of the lively model, which calls its tool in them."""
    engine = make_engine(lively_params())
    return sample_rollouts(engine, TOKENIZER, Even(), CONFIG, seed=0, step=3)


def rows_of(rollouts: Rollouts, *sizes: Any, **more: Any) -> dict[str, np.ndarray]:
    return make_batch(rollouts, advantages(rollouts.rewards), *sizes, **more)


def ids_of(rollouts: Rollouts) -> list[list[int]]:
    """Every prompt with every of its completions."""
    pairs = zip(rollouts.prompts, rollouts.groups, strict=True)
    return [[*prompt, *c.tokens] for prompt, group in pairs for c in group]


def test_the_rollouts_of_these_tests_have_tool_calls_and_signal() -> None:
    completions = sampled().completions
    assert any(0 in c.mask for c in completions), "no tool was called"
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert advantages(sampled().rewards).any(axis=1).sum() >= 2
    assert any(TOKENIZER.encode(TOKENIZER.decode(c.tokens)) != [*c.tokens] for c in completions), (
        "every completion is what its text is encoded to, so encoding it again would go unnoticed"
    )


def test_an_advantage_is_the_reward_less_its_groups_mean() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    expected = [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0], [-0.25, -0.25, -0.25, 0.75]]
    np.testing.assert_array_equal(advantages(rewards), expected)


@pytest.mark.parametrize("samples", range(2, 20))
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_group_of_equal_rewards_has_no_signal_at_all(samples: int, reward: float) -> None:
    assert not advantages(np.full((2, samples), reward)).any()


def test_only_sampled_tokens_carry_a_loss_and_rows_beyond_the_rollouts_nothing() -> None:
    batch = rows_of(Rollouts([[1, 2]], [[TOOL, SHORT]], np.array([[1.0, 0.0]])), 7, 3, pad=0)
    assert batch["tokens"].tolist() == [[1, 2, 5, 6, 7, 8, 0], [1, 2, 9, 0, 0, 0, 0], [0] * 7]
    assert batch["mask"].tolist() == [[0, 0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0] * 7]
    assert batch["advantage"].tolist() == [0.5, -0.5, 0]


def test_tokens_of_a_group_weigh_alike_and_1_on_average() -> None:
    """Four samples of 2, 1, 1 and 1 sampled tokens, in twos; those of tools have no weight."""
    rollouts = Rollouts([[1, 2]], [[TOOL, SHORT, SHORT, SHORT]], np.array([[1.0, 0, 0, 0]]))
    batch = rows_of(rollouts, 7, 5, pad=0, loss_group=2)
    a, b = 2.5 / 3, 2.5 / 2  # 5 tokens in 2 groups, of 3 and of 2
    expected = [[0, 0, a, 0, 0, a, 0], [0, 0, a], [0, 0, b], [0, 0, b], []]
    want = [row + [0] * (7 - len(row)) for row in expected]
    np.testing.assert_allclose(batch["mask"], want, rtol=1e-6)
    assert batch["mask"].sum() == pytest.approx(5)


def test_rollouts_with_an_advantage_come_first() -> None:
    rewards = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    rollouts = Rollouts([[n] for n in range(1, 5)], [[SHORT] * 2] * 4, rewards)
    batch = rows_of(rollouts, 3, 9, pad=0)
    assert batch["tokens"][:, 0].tolist() == [2, 2, 4, 4, 1, 1, 3, 3, 0]
    assert batch["advantage"].tolist() == [0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0, 0]


def test_a_rollout_beyond_the_row_loses_its_tail() -> None:
    long = Completion((5, 6, 7, 8), (1, 1, 1, 1), (-1.0,) * 4, "length")
    batch = rows_of(Rollouts([[1, 2]], [[long]], np.array([[1.0]])), 4, 1, pad=0)
    assert batch["tokens"].tolist() == [[1, 2, 5, 6]]
    assert batch["mask"].tolist() == [[0, 0, 1, 1]]


def test_the_ids_in_the_rows_are_those_that_were_sampled() -> None:
    rollouts = sampled()
    assert rollouts.longest == max(map(len, ids_of(rollouts)))
    batch = rows_of(rollouts, T + 1, rollouts.rewards.size, TOKENIZER.bos)
    for row, ids in zip(batch["tokens"].tolist(), ids_of(rollouts), strict=True):
        assert row == ids + [TOKENIZER.bos] * (T + 1 - len(ids))


@pytest.mark.parametrize(("longest", "size"), [(1, 128), (128, 128), (129, 250), (200, 250)])
def test_rows_come_in_few_lengths(longest: int, size: int) -> None:
    assert bucket(longest, MIN_ROW, 250) == size


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("micro", [1, 5, 32])
@pytest.mark.parametrize("rollouts", [2, 15, 128, 250])
def test_micro_batches_hold_all_rollouts_and_few_empty_rows(
    rollouts: int, micro: int, shards: int
) -> None:
    count, rows = plan_rows(rollouts, micro, shards)
    assert rows % shards == 0
    assert rows <= micro * shards
    assert 0 <= count * rows - rollouts < count * shards


def test_figures_by_hand() -> None:
    groups = [[TOOL, SHORT], [SHORT, SHORT]]
    metrics = rollout_metrics(
        Rollouts([[1], [2]], groups, np.array([[1.0, 0.0], [1.0, 1.0]]), seconds=0.5)
    )
    assert metrics == {
        "reward": 0.75,
        "entropy": pytest.approx((1 + 2 + 0.5 * 3) / 5),  # of the five sampled tokens
        "length": 7 / 4,
        "at_limit": 0.75,
        "no_signal": 0.5,
        "sample_seconds": 0.5,
        "rollout_tokens_per_second": 14.0,
    }


def test_the_entropy_logged_is_that_of_the_distributions_sampled_from() -> None:
    """-log p of what was drawn, over 1,500 draws, is near the entropy of what they came from."""
    config = replace(CONFIG, samples_per_problem=64)
    rollouts = sample_rollouts(
        make_engine(lively_params()), TOKENIZER, Even(), config, seed=1, step=0
    )
    batch = rows_of(rollouts, T + 1, rollouts.rewards.size, TOKENIZER.bos)
    logp = jax.nn.log_softmax(forward(lively_params(), batch["tokens"][:, :-1], MODEL))
    entropy, mask = np.asarray(-(jnp.exp(logp) * logp).sum(-1)), batch["mask"][:, 1:]
    exact = (entropy * mask).sum() / mask.sum()
    assert rollout_metrics(rollouts)["entropy"] == pytest.approx(exact, rel=0.03)


def test_rollouts_depend_on_seed_and_step_alone() -> None:
    engine = make_engine(lively_params())  # of fewer slots than samples: they queue

    def sample(seed: int, step: int) -> list[Any]:
        found = sample_rollouts(engine, TOKENIZER, Even(), CONFIG, seed=seed, step=step)
        return [(c.tokens, c.mask) for c in found.completions]

    expected = [(c.tokens, c.mask) for c in sampled().completions]
    assert sample(0, 4) != expected != sample(1, 3)
    assert sample(0, 3) == expected
    seeds = [step_seed(seed, step) for seed in range(10) for step in range(100)]
    assert len(set(seeds)) == len(seeds)


def test_the_engines_logprobs_are_those_the_trainer_has_of_the_same_ids() -> None:
    """In fp32, to 1e-5 nats; calls of tools are in between."""
    params, rollouts = lively_params(), sampled()
    batch = rows_of(rollouts, T + 1, rollouts.rewards.size, TOKENIZER.bos)
    x = features(params, batch["tokens"][:, :-1], MODEL)
    kernel = params["lm_head"]["kernel"]
    theirs = token_logprobs(x, kernel, batch["tokens"][:, 1:], softcap=MODEL.softcap)
    rows = zip(rollouts.prompts, rollouts.groups, np.asarray(theirs).reshape(3, 6, T), strict=True)
    compared = 0
    for prompt, group, lines in rows:
        for completion, line in zip(group, lines, strict=True):
            flags = np.array(completion.mask, bool)
            found = line[len(prompt) - 1 :][: len(flags)][flags]
            np.testing.assert_allclose(
                np.array(completion.logprobs)[flags], found, atol=1e-5, rtol=0
            )
            compared += flags.sum()
    assert compared > 50


def ranks(rollouts: Rollouts) -> np.ndarray:
    """The rank of every sampled token by the model's own logits; 0 is the likeliest."""
    batch = rows_of(rollouts, T + 1, rollouts.rewards.size, TOKENIZER.bos)
    logits = np.asarray(forward(lively_params(), batch["tokens"][:, :-1], MODEL))
    chosen = np.take_along_axis(logits, batch["tokens"][:, 1:, None], axis=-1)
    found: np.ndarray = (logits > chosen).sum(-1)[batch["mask"][:, 1:] > 0]
    return found


def test_rollouts_are_drawn_from_the_top_k_alone_and_their_logprobs_are_over_all_tokens() -> None:
    params, config = lively_params(), replace(CONFIG, top_k=3)
    engine = make_engine(params)
    few = sample_rollouts(engine, TOKENIZER, Even(), config, seed=0, step=3)
    assert set(ranks(few)) == {0, 1, 2}
    assert ranks(sampled()).max() > 20, "the model never draws an unlikely token anyway"
    for prompt, group in zip(few.prompts, few.groups, strict=True):
        for completion in group:
            ids = [*prompt, *completion.tokens]
            logp = logprobs_of(params, ids[:-1], MODEL)
            flags = np.array(completion.mask, bool)
            chosen = logp[np.arange(len(ids) - 1), ids[1:]]
            theirs = chosen[len(prompt) - 1 :][flags]
            np.testing.assert_allclose(np.array(completion.logprobs)[flags], theirs, atol=1e-5)


# ------------------------------------------------------------------- the gradient


@jax.jit
def score(params: Any, ids: jax.Array, chosen: jax.Array) -> jax.Array:
    """The sum of log p over the chosen tokens of one text [T], by the plain formula."""
    logp = jax.nn.log_softmax(gpt.forward(params, ids[None, :-1], MODEL))[0]
    return (jnp.take_along_axis(logp, ids[1:, None], axis=-1)[:, 0] * chosen[1:]).sum()


SCORE_GRAD = jax.jit(jax.grad(score))


@cache
def sample_gradients() -> list[tuple[Any, int]]:
    """Of one sample after the other: advantage * gradient of log p, and its sampled tokens."""
    rollouts, params = sampled(), lively_params()
    found = []
    for number, completion in enumerate(rollouts.completions):
        prompt = rollouts.prompts[number // 6]
        ids, chosen = np.zeros(T + 1, np.int32), np.zeros(T + 1, np.float32)
        ids[: len(prompt) + len(completion.tokens)] = [*prompt, *completion.tokens]
        chosen[len(prompt) : len(prompt) + len(completion.mask)] = completion.mask
        rewards = rollouts.rewards[number // 6]
        advantage = rewards[number % 6] - sum(rewards) / 6
        grad = SCORE_GRAD(params, ids, chosen)
        grad = jax.tree.map(lambda g, f=advantage: f * np.asarray(g, float), grad)
        found.append((grad, sum(completion.mask)))
    return found


@cache
def policy_gradient(size: int) -> Any:
    """The mean over groups of `size` samples of their gradients' sum over their sampled tokens."""
    samples, groups = sample_gradients(), []
    for first in range(0, len(samples), size):
        total, count = samples[first]
        for grad, tokens in samples[first + 1 : first + size]:
            total, count = jax.tree.map(np.add, total, grad), count + tokens
        groups.append(jax.tree.map(lambda x, n=count: x / n, total))
    mean = groups[0]
    for other in groups[1:]:
        mean = jax.tree.map(np.add, mean, other)
    return jax.tree.map(lambda x: x / len(groups), mean)


def furthest(got: Any, want: Any) -> float:
    """The largest difference of two gradients, in shares of the second's largest entry."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    return float(
        max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), got, want))) / largest
    )


def test_the_means_over_tokens_and_over_groups_of_these_rollouts_differ() -> None:
    """Or the tests below would not notice one in the place of another."""
    lengths = {sum(tokens for _, tokens in sample_gradients()[i : i + 3]) for i in range(0, 18, 3)}
    assert len(lengths) > 3, "groups are of one length"
    for one, other in ((3, 18), (3, 6), (6, 18)):
        assert furthest(policy_gradient(one), policy_gradient(other)) > 0.02


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize(
    ("devices", "micro_rows"),
    [
        pytest.param(1, 18, id="at once"),
        pytest.param(1, 7, id="in three micro-batches of six"),
        pytest.param(1, 5, id="in four of five, two rows empty"),
        pytest.param(8, 2, id="on 8 devices in two of sixteen, 14 rows empty"),
    ],
)
@pytest.mark.parametrize("loss_group", [0, 3], ids=["over tokens", "over groups of 3"])
def test_a_step_follows_the_policy_gradient(loss_group: int, devices: int, micro_rows: int) -> None:
    expected = policy_gradient(loss_group or sampled().rewards.size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    step = make_train_step(MODEL, optax.sgd(1.0), mesh)
    state = init_state(lively_params(), optax.sgd(1.0), mesh)
    count, rows = plan_rows(sampled().rewards.size, micro_rows, batch_shards(mesh))
    batch = rows_of(sampled(), T + 1, count * rows, TOKENIZER.bos, loss_group)
    split = {k: v.reshape(count, rows, *v.shape[1:]) for k, v in batch.items()}
    state, metrics = step(state, put_batch(mesh, split))
    tokens = sum(sum(c.mask) for c in sampled().completions)
    assert float(metrics["weight"]) == pytest.approx(tokens, rel=1e-6 if loss_group else 0)
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 1e-3

    def check(path: Any, new: Any, old: Any, grad: np.ndarray) -> None:
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(new - np.asarray(old), grad, atol=1e-5, rtol=0, err_msg=where)

    before = lively_params()
    jax.tree_util.tree_map_with_path(check, jax.device_get(state.params), before, expected)


def test_a_prompt_too_long_loses_its_oldest_tokens_and_is_trained_on_as_it_was_sampled() -> None:
    problem = Even().problem("test", 0)
    long = replace(problem, conversation=say("how many of them are there? " * 9, "a"))
    short, cut = prompts_of(make_engine(lively_params()), TOKENIZER, [problem, long], 20)
    whole = render_prompt(long.conversation["messages"][:-1], TOKENIZER)
    assert [*short] == render_prompt(problem.conversation["messages"][:-1], TOKENIZER)
    assert [*cut] == [whole[0], *whole[-(T - 16 - 1) :]]  # a quarter of 64 is left
