"""Bits per byte against a hand computation in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from whole_model import forward

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.evals import bpb
from jaxchat.evals.bpb import AHEAD, bits_per_byte, check_bytes
from jaxchat.model import gpt
from jaxchat.model.backend import Compute
from jaxchat.parallel.mesh import make_mesh

MODEL = ModelConfig(vocab_size=11, sequence_len=8, n_layer=1, n_head=2, n_kv_head=2, n_embd=16)
SIZES = np.array([0, 1, 1, 2, 3, 1, 4, 0, 2, 1, 5], np.int32)  # 0 and 7 are special


@pytest.fixture(scope="module")
def params() -> gpt.Params:
    """A model whose head is not zero, as it is at first."""
    params = gpt.init_params(jax.random.key(0), MODEL)
    kernel = jax.random.normal(jax.random.key(1), (MODEL.n_embd, MODEL.vocab_size))
    return {**params, "lm_head": {"kernel": kernel}}


def batch(seed: int, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, MODEL.vocab_size, (rows, MODEL.sequence_len + 1)).astype(np.int32)
    return {"tokens": tokens, "mask": rng.integers(0, 2, tokens.shape).astype(np.float32)}


def by_hand(params: gpt.Params, batches: list[dict[str, np.ndarray]]) -> float:
    nats = size = 0.0
    for one in batches:
        logits = np.asarray(forward(params, one["tokens"][:, :-1], MODEL), np.float64)
        for row, position in np.ndindex(logits.shape[:2]):
            target = one["tokens"][row, position + 1]
            if one["mask"][row, position + 1] == 0 or SIZES[target] == 0:
                continue
            scores = logits[row, position]
            nats += math.log(sum(math.exp(s) for s in scores)) - scores[target]
            size += SIZES[target]
    return nats / math.log(2) / size


def test_special_and_masked_tokens_count_neither_above_nor_below(params: gpt.Params) -> None:
    batches = [batch(0, 3), batch(1, 3)]
    found = bits_per_byte(params, batches, SIZES, MODEL)
    assert found == pytest.approx(by_hand(params, batches), rel=1e-5)


def test_what_tokens_weigh_in_the_loss_counts_for_nothing(params: gpt.Params) -> None:
    plain, weighted = batch(4, 3), batch(4, 3)
    weighted["mask"] *= np.random.default_rng(5).uniform(0.01, 9, weighted["mask"].shape)
    found = bits_per_byte(params, [weighted], SIZES, MODEL)
    assert found == bits_per_byte(params, [plain], SIZES, MODEL)


def test_batches_are_weighted_by_their_bytes_not_averaged(params: gpt.Params) -> None:
    large, small = batch(2, 4), batch(3, 4)
    small["mask"][:, 2:] = 0
    found = bits_per_byte(params, [large, small], SIZES, MODEL)
    mean = np.mean([bits_per_byte(params, [one], SIZES, MODEL) for one in (large, small)])
    assert found == pytest.approx(by_hand(params, [large, small]), rel=1e-5)
    assert abs(found - mean) > 1e-3, "the two batches weigh the same"


def test_what_training_rounds_is_not_rounded(params: gpt.Params) -> None:
    rounded = Compute(matmul="bfloat16", attention="banded")
    batches = [batch(8, 8)]
    params = jax.tree.map(lambda x: x + 0.3, params)  # what is attended counts: it was times zero
    assert bits_per_byte(params, batches, SIZES, MODEL, rounded) == bits_per_byte(
        params, batches, SIZES, MODEL
    )


def masked(seed: int) -> dict[str, np.ndarray]:
    """A batch in which only first tokens and special ones are not masked."""
    empty = batch(seed, 8)
    empty["mask"] = np.isin(empty["tokens"], (0, 7)).astype(np.float32)
    empty["mask"][:, 0] = 1
    return empty


def test_a_held_out_set_without_a_byte_to_predict_is_reported_and_no_nan(
    params: gpt.Params,
) -> None:
    for batches in ([masked(4)], [masked(4), masked(5)], []):
        with pytest.raises(ArtifactError, match="every token is masked or special"):
            bits_per_byte(params, batches, SIZES, MODEL)
        with pytest.raises(ArtifactError, match="every token is masked or special"):
            check_bytes(batches, SIZES)


def test_a_masked_batch_beside_others_changes_nothing(params: gpt.Params) -> None:
    some = batch(6, 8)
    check_bytes([masked(4), some], SIZES)
    alone = bits_per_byte(params, [some], SIZES, MODEL)
    assert bits_per_byte(params, [masked(4), some, masked(5)], SIZES, MODEL) == alone


def test_devices_whose_rows_are_masked_change_nothing(params: gpt.Params) -> None:
    some = batch(7, 8)
    some["mask"][1:] = 0
    mesh = make_mesh(MeshConfig())
    assert mesh.size == 8
    on_mesh = bits_per_byte(params, [some, masked(4)], SIZES, MODEL, mesh=mesh)
    assert on_mesh == pytest.approx(by_hand(params, [some]), rel=1e-5)


def test_few_batches_are_under_way_at_a_time(
    params: gpt.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, those of 8 virtual devices block each other until XLA ends the process."""
    sums_over, under_way, most = bpb._sums_over, 0, 0

    class Result(tuple[float, float]):
        """What a program gives; it has ended when someone asks for it."""

        def __iter__(self) -> Iterator[float]:
            nonlocal under_way
            under_way -= 1
            return super().__iter__()

    def counted(*args: object) -> object:
        run = sums_over(*args)  # type: ignore[arg-type]

        def dispatch(*inputs: object) -> Result:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            return Result(tuple(run(*inputs)))

        return dispatch

    monkeypatch.setattr(bpb, "_sums_over", counted)
    batches = [batch(seed, 8) for seed in range(20)]
    mesh = make_mesh(MeshConfig())
    found = bits_per_byte(params, batches, SIZES, MODEL, mesh=mesh)
    assert found == pytest.approx(by_hand(params, batches), rel=1e-5)
    assert most <= AHEAD + 1, f"{most} programs were under way at once"
    assert under_way == 0
