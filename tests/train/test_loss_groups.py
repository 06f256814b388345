"""SFT's loss by groups of conversations: the gradient of packed rows against plain loops.

The reference never sees weights: it takes the gradient of every conversation's learned tokens by
itself, divides the sum of a group by the group's tokens, and averages over groups.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import CLASSIC, random_params

from jaxchat.config.schema import MeshConfig
from jaxchat.data.packing import draw_groups, group_weights, pack_conversations
from jaxchat.model import gpt
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.tokenizer import render, render_batch, train_tokenizer
from jaxchat.train.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

BYTES = train_tokenizer([], 265)
ROW, ROWS = 41, 16  # ids of a row; rows of a step
MODEL = replace(CLASSIC, sequence_len=ROW - 1)
GROUP, SEED = 4, 11
Chat = dict[str, Any]


def chat(question: str, *replies: Chat, **fields: Any) -> Chat:
    messages: list[Chat] = []
    for reply in replies:
        messages += [{"role": "user", "content": question}, {"role": "assistant", **reply}]
    return {"messages": messages, **fields}


def chats() -> list[Chat]:
    """27 conversations, of 7 to some 60 tokens; no two begin alike."""
    made = [
        chat(chr(65 + n), {"content": "y" * (n * n % 13)}, {"content": "no" * (n % 3)})
        for n in range(24)
    ]
    made.append(chat("long", {"content": "abcdefgh" * 8}))  # cut in its reply
    made.append(chat("q" * 50, {"content": "never seen"}))  # cut before it
    made.append(chat("Z", {"content": "the last group is smaller"}))
    return made


def weighted() -> list[Chat]:
    """The same, where some messages and conversations say what they weigh."""
    made = chats()
    made[2]["messages"][1]["weight"] = 0.25
    made[3]["messages"][3]["weight"] = 0
    made[5]["train"] = False
    made[7] |= {"weight": 0.5}
    made[7]["messages"][1]["weight"] = 0.5
    made[24]["weight"] = 0.75
    return made


@cache
def packed(own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [ROWS, ROW] as the stage `rows` makes them, filled up with empty rows."""
    ids, mask, offsets = render_batch(weighted() if own else chats(), BYTES)  # type: ignore[arg-type]
    weights = group_weights(mask, offsets, ROW, draw_groups(len(chats()), GROUP, SEED))
    mask = mask * np.repeat(weights, np.diff(offsets))
    tokens, mask, _ = pack_conversations(ids, mask, offsets, ROW, BYTES.bos)
    assert len(tokens) <= ROWS
    assert (tokens[:, 1:] == BYTES.bos).any(1).sum() > 5, "few rows hold several conversations"
    more = ((0, ROWS - len(tokens)), (0, 0))
    return np.pad(tokens, more, constant_values=BYTES.bos).astype(np.int32), np.pad(mask, more)


def found(own: bool) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """(conversation, its row of ids, what its tokens weigh there by themselves, learned tokens)."""
    tokens, _ = packed(own)
    for number, one in enumerate(weighted() if own else chats()):
        ids, own_weights = render(one, BYTES)  # type: ignore[arg-type]
        ids, own_weights = ids[:ROW], own_weights[:ROW]
        places = [
            (row, start)
            for row in range(ROWS)
            for start in range(ROW - len(ids) + 1)
            if tokens[row, start : start + len(ids)].tolist() == ids
        ]
        assert len(places) == 1, f"conversation {number} is at {places}"
        row, start = places[0]
        line = np.zeros(ROW, np.float32)
        line[start : start + len(ids)] = own_weights
        yield number, tokens[row], line, sum(weight > 0 for weight in own_weights)


@jax.jit
def nll(params: Any, ids: jax.Array, chosen: jax.Array) -> jax.Array:
    """Sum of chosen * -log p over one row [ROW], by the plain formula."""
    logp = jax.nn.log_softmax(gpt.forward(params, ids[None, :-1], MODEL))[0]
    return -(jnp.take_along_axis(logp, ids[1:, None], axis=-1)[:, 0] * chosen[1:]).sum()


GRAD = jax.jit(jax.grad(nll))


@cache
def mean_of_groups(own: bool) -> Any:
    """The gradient of the mean over groups of the mean over each one's learned tokens.

    A group counts as many times as it has conversations, and none without a learned token. What
    conversations weigh by themselves multiplies into both sides of the division.
    """
    params = random_params(MODEL)
    groups: dict[int, list[Any]] = {}
    for number, ids, weights, learned in found(own):
        grad = jax.tree.map(lambda g: np.asarray(g, float), GRAD(params, ids, weights))
        group = int(draw_groups(len(chats()), GROUP, SEED)[number])
        groups.setdefault(group, []).append((grad, learned, float(weights.sum())))
    total = jax.tree.map(lambda x: np.zeros(x.shape), params)
    count = 0.0
    for members in groups.values():
        tokens = sum(learned for _, learned, _ in members)
        for grad, _, weight in members:
            share = len(members) / tokens
            total = jax.tree.map(lambda t, g, f=share: t + f * g, total, grad)
            count += share * weight
    return jax.tree.map(lambda t: t / count, total)


def step_gradient(own: bool, devices: int, accumulation: int, mask: np.ndarray) -> Any:
    """The gradient a step descends: the update of plain descent at rate 1."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    step = make_train_step(MODEL, optax.sgd(1.0), mesh)
    state = init_state(random_params(MODEL), optax.sgd(1.0), mesh)
    batch = {"tokens": packed(own)[0], "mask": mask}
    split = {k: v.reshape(accumulation, -1, ROW) for k, v in batch.items()}
    before = jax.device_get(state.params)
    state, _ = step(state, put_batch(mesh, split))
    return jax.tree.map(lambda a, b: a - b, before, jax.device_get(state.params))


def furthest(got: Any, want: Any) -> float:
    """The largest difference of two gradients, in shares of the second's largest entry."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), got, want))) / largest


@pytest.mark.parametrize(
    ("devices", "accumulation"), [(1, 1), (1, 4), (8, 1), (8, 2)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("own", [False, True], ids=["alike", "own weights"])
def test_a_step_of_packed_rows_follows_the_mean_over_groups(
    own: bool, devices: int, accumulation: int
) -> None:
    got = step_gradient(own, devices, accumulation, packed(own)[1])
    assert furthest(got, mean_of_groups(own)) < 1e-5


def test_a_mean_over_all_tokens_is_far_from_it() -> None:
    """So the tests above would notice weights that do nothing."""
    flags = (packed(False)[1] > 0).astype(np.float32)
    assert furthest(step_gradient(False, 1, 1, flags), mean_of_groups(False)) > 0.05


def test_learned_tokens_weigh_1_on_average_and_those_of_a_group_alike() -> None:
    ids, mask, offsets = render_batch(chats(), BYTES)  # type: ignore[arg-type]
    groups = draw_groups(len(chats()), GROUP, SEED)
    weights = group_weights(mask, offsets, ROW, groups)
    _, packed_mask, _ = pack_conversations(
        ids, mask * np.repeat(weights, np.diff(offsets)), offsets, ROW, BYTES.bos
    )
    assert packed_mask[packed_mask > 0].mean() == pytest.approx(1)
    for group in range(7):
        assert len(set(weights[groups == group])) == 1
    assert len(set(weights)) == 7


@pytest.mark.parametrize("count", [0, 1, 4, 27, 400])
def test_groups_are_a_partition_drawn_at_random(count: int) -> None:
    groups = draw_groups(count, GROUP, SEED)
    sizes = np.bincount(groups)
    assert sizes[:-1].tolist() == [GROUP] * (len(sizes) - 1)
    assert sizes.sum() == count
    np.testing.assert_array_equal(groups, draw_groups(count, GROUP, SEED))
    if count == 400:
        assert (groups != draw_groups(count, GROUP, SEED + 1)).any()
        assert np.abs(np.diff(groups)).mean() > 20, "neighbours are in one group"


def test_a_group_without_a_learned_token_weighs_nothing_and_takes_nothing_from_others() -> None:
    mask = np.array([0, 1, 0, 0, 0, 1, 1, 1], np.uint8)
    offsets = np.array([0, 2, 4, 8])  # three conversations
    alone = group_weights(mask, offsets, 9, np.array([0, 1, 2]))
    assert alone.tolist() == [2, 0, pytest.approx(2 / 3)]  # 1 and 3 tokens: a mean over two groups
    assert group_weights(mask * 0, offsets, 9, np.array([0, 1, 1])).tolist() == [0, 0, 0]
    cut = group_weights(mask, offsets, 2, np.array([0, 1, 2]))  # of the third one token is left
    assert cut.tolist() == [1, 0, 1]
