"""Supervised fine-tuning's masks, from conversations to the update: whatever they leave out.

The gradient of a step is that of one mean over all its supervised tokens, however they are spread
over rows, micro-batches and devices, and finite where there is none.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tiny_training import (
    CLASSIC,
    MODERN,
    MODERN_OPTIM,
    TOKENIZER,
    VOCAB,
    T,
    random_params,
    tiny_job,
)

from jaxchat.config.schema import MeshConfig
from jaxchat.data.loader import RowSource
from jaxchat.data.shard_folder import write_rows
from jaxchat.errors import ArtifactError
from jaxchat.model import gpt
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh, put_batch
from jaxchat.tokenizer import render_batch, train_tokenizer
from jaxchat.train.loop import fit
from jaxchat.train.metrics import read_metrics
from jaxchat.train.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("optax_promotion")

A, B = 2, 8  # micro-batches, rows of each: one a device on the mesh
BYTES = train_tokenizer([], 265)
Batch = dict[str, np.ndarray]


def cut_chats() -> Batch:
    """Rows of one conversation each, of 5 to 26 tokens: some padded, some cut before any reply."""
    chats: Any = [
        {
            "messages": [
                {"role": "user", "content": "a" * (5 * number % 16)},
                {"role": "assistant", "content": "ok" * (number % 4)},
            ]
        }
        for number in range(A * B)
    ]
    ids, mask, offsets = render_batch(chats, BYTES)
    tokens, flags = np.full((A * B, T + 1), BYTES.bos), np.zeros((A * B, T + 1))
    for row, (start, end) in enumerate(pairwise(offsets)):
        end = min(end, start + T + 1)
        tokens[row, : end - start], flags[row, : end - start] = ids[start:end], mask[start:end]
    supervised = flags[:, 1:].sum(1)
    assert (supervised == 0).any(), "no conversation is cut before its reply"
    assert len(set(supervised)) > 3, "the rows weigh the same"
    return {
        "tokens": tokens.astype(np.int32).reshape(A, B, T + 1),
        "mask": flags.astype(np.float32).reshape(A, B, T + 1),
    }


def batch_with(mask: np.ndarray) -> Batch:
    tokens = np.random.default_rng(0).integers(0, VOCAB, (A, B, T + 1)).astype(np.int32)
    return {"tokens": tokens, "mask": np.broadcast_to(mask, tokens.shape).astype(np.float32)}


def some(share: float = 0.4) -> np.ndarray:
    return np.random.default_rng(1).random((A, B, T + 1)) < share


def without(*where: Any) -> np.ndarray:
    mask = some()
    mask[where] = False
    return mask


def only(*where: Any) -> np.ndarray:
    mask = np.zeros((A, B, T + 1))
    mask[where] = 1
    return mask


BATCHES = {
    "conversations, some cut before the reply": cut_chats(),
    "a micro-batch without a supervised token": batch_with(without(1)),
    "one row of sixteen": batch_with(without(slice(None), slice(1, None)) * [[[1]], [[0]]]),
    "one token in all": batch_with(only(1, 5, 9)),
    "the last token of one row": batch_with(only(0, 7, T)),
    "weights between 0 and 40": batch_with(
        some() * 40 * np.random.default_rng(3).random((B, T + 1))
    ),
    "weights whose sum is far below 1": batch_with(some() * 1e-6),
}
EMPTY = {"nothing": batch_with(only(0, 0, 0) * 0), "first tokens only": batch_with(only(..., 0))}
VANISHING = batch_with(only(0, 0, 1) * 1e-40)  # its inverse is infinite


@jax.jit
def weighted_nll(params: Any, tokens: np.ndarray, weights: np.ndarray) -> jax.Array:
    """Sum of weights * -log p over rows [N, T+1], by the plain formula."""
    logprobs = jax.nn.log_softmax(gpt.forward(params, tokens[:, :-1], CLASSIC))
    chosen = jax.numpy.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    return -(chosen * weights[:, 1:]).sum()


GRADS = jax.jit(jax.value_and_grad(weighted_nll))


def brute_force(params: Any, batch: Batch) -> tuple[float, Any]:
    """The mean over all supervised tokens of the step in one go, and its gradient."""
    tokens, mask = (batch[name].reshape(-1, T + 1) for name in ("tokens", "mask"))
    loss, grads = GRADS(params, tokens, mask / mask[:, 1:].sum())
    return float(loss), jax.device_get(grads)


@cache
def descent(shape: tuple[int, int, int] | None) -> Any:
    """A step of plain gradient descent at rate 1, whose update is the gradient, and its mesh."""
    mesh = make_mesh(MeshConfig(*shape)) if shape else make_mesh(MeshConfig(), jax.devices()[:1])
    return make_train_step(CLASSIC, optax.sgd(1.0), mesh), mesh


MESHES = [
    pytest.param(None, id="one device"),
    pytest.param((8, 1, 1), id="8 devices"),
    pytest.param((2, 2, 2), id="2 x 2 x 2", marks=pytest.mark.slow),
]


def stepped(batch: Batch, shape: tuple[int, int, int] | None) -> tuple[Any, Any, dict[str, float]]:
    """Parameters before and after a step, and its metrics."""
    step, mesh = descent(shape)
    state = init_state(random_params(CLASSIC), optax.sgd(1.0), mesh)
    before = jax.device_get(state.params)
    state, metrics = step(state, put_batch(mesh, batch))
    return before, jax.device_get(state.params), {k: float(v) for k, v in metrics.items()}


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_gradient_is_that_of_one_mean_over_the_steps_supervised_tokens(
    batch: Batch, shape: tuple[int, int, int] | None
) -> None:
    before, after, metrics = stepped(batch, shape)
    loss, grads = brute_force(before, batch)
    assert metrics["weight"] == pytest.approx(float(batch["mask"][..., 1:].sum(dtype=float)))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)

    def check(path: Any, new: np.ndarray, old: np.ndarray, grad: np.ndarray) -> None:
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(old - new, grad, atol=2e-5, rtol=1e-4, err_msg=where)

    jax.tree_util.tree_map_with_path(check, after, before, grads)


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("batch", EMPTY.values(), ids=EMPTY)
def test_a_step_without_supervised_tokens_moves_nothing(
    batch: Batch, shape: tuple[int, int, int] | None
) -> None:
    before, after, metrics = stepped(batch, shape)
    assert metrics == {"loss": 0, "weight": 0, "grad_norm": 0}
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_weight_too_small_to_be_divided_by_moves_nothing_far() -> None:
    before, after, metrics = stepped(VANISHING, None)
    assert np.isfinite(list(metrics.values())).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), after, before)


@pytest.mark.slow
def test_muon_and_adam_stay_finite_when_the_first_and_a_later_step_are_empty() -> None:
    mesh = make_mesh(MeshConfig())
    optimizer = make_optimizer(MODERN, MODERN_OPTIM, 6)
    step = make_train_step(MODERN, optimizer, mesh)
    state = init_state(random_params(MODERN), optimizer, mesh)
    empty, full = EMPTY["nothing"], BATCHES["one token in all"]
    for batch in (empty, empty, full, empty, full):
        state, metrics = step(state, put_batch(mesh, batch))
        assert all(np.isfinite(float(value)) for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


# ------------------------------------------------------------------- through `fit`


def write_masked(folder: Path, name: str, mask: np.ndarray) -> None:
    tokens = np.random.default_rng(2).integers(0, VOCAB - 9, mask.shape).astype(np.uint16)
    write_rows(folder / name, tokens, mask, TOKENIZER)


def test_training_on_rows_that_are_mostly_masked_ends_well(tmp_path: Path) -> None:
    """Of 16 rows one has a supervised token: half of the steps, of 8 rows, have none."""
    mask = np.zeros((16, T + 1), np.uint8)
    mask[3, 5] = 1
    write_masked(tmp_path, "rows", mask)
    held_out = np.zeros((8, T + 1), np.uint8)
    held_out[1, 2:4] = 1
    write_masked(tmp_path, "held_out", held_out)
    job = tiny_job(tmp_path)
    result = fit(job, random_params(CLASSIC))
    losses = [r["loss"] for r in read_metrics(job.folder / "metrics.jsonl") if "loss" in r]
    assert 0.0 in losses, "no step was empty"
    assert np.isfinite([*losses, result.loss, result.bits_per_byte]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_held_out_rows_without_supervised_tokens_are_reported_before_training(
    tmp_path: Path,
) -> None:
    write_masked(tmp_path, "held_out", np.zeros((20, T + 1), np.uint8))
    job = tiny_job(tmp_path)
    assert isinstance(job.held_out, RowSource)
    with pytest.raises(ArtifactError, match="every token is masked or special"):
        fit(job, random_params(CLASSIC))
    assert not (job.folder / "metrics.jsonl").exists()
