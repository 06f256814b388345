"""Log-probabilities of every token of many prompts, and the likeliest in its place.

Axes: B rows, T time, N positions that are read, V vocabulary, A likeliest tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.evals.core.scoring import CPU, GPU, Sizes
from jaxchat.evals.logits import read_logits
from jaxchat.evals.model import EvalModel
from jaxchat.model import gpt
from jaxchat.model.backend import Compute, backend, bucket
from jaxchat.model.vocabulary import check_ids

SMALLEST = 32  # tokens of a row
ROWS = 4  # rows of a batch are a power of this, or as many as it holds: few shapes are compiled


@dataclass(frozen=True)
class TokenScores:
    """Of one prompt of L tokens; log-probabilities in nats, at temperature 1."""

    logprobs: np.ndarray  # [L-1] of each token but the first, which has nothing before it
    likeliest: np.ndarray  # [L,A] ids after each token, likeliest first
    likeliest_logprobs: np.ndarray  # [L,A]


def score_tokens(
    prompts: Sequence[Sequence[int]], model: EvalModel, *, likeliest: int = 1
) -> list[TokenScores]:
    """The scores of prompts of at least one token each, in their order.

    `likeliest` is A, at least 1. All is computed on one device, as other evaluations compute.
    """
    sizes = CPU if backend().sizes == "cpu" else GPU
    found: dict[int, TokenScores] = {}
    for places, rows, time in _batches(prompts, sizes, model.config.sequence_len):
        arrays = _arrays([prompts[place] for place in places], rows, time)
        check_ids(arrays[0], model.config.vocab_size, "a prompt")
        scores = _scores(
            model.params, *arrays,
            model=model.config, compute=model.compute, head=sizes.head, likeliest=likeliest,
        )  # fmt: skip
        logprobs, ids, values = map(np.asarray, scores)
        start = 0
        for place in places:
            stop = start + len(prompts[place])
            part = slice(start, stop)
            found[place] = TokenScores(logprobs[start : stop - 1], ids[part], values[part])
            start = stop
    return [found[place] for place in range(len(prompts))]


@functools.partial(jax.jit, static_argnames=("model", "compute", "head", "likeliest"))
def _scores(
    params: Any,
    tokens: jax.Array,
    at: jax.Array,
    targets: jax.Array,
    count: jax.Array,
    *,
    model: ModelConfig,
    compute: Compute,
    head: int,
    likeliest: int,
) -> tuple[jax.Array, ...]:
    """log p(target) [N], the likeliest [N,A] and their log p [N,A] after positions `at` [N] of
    `tokens` [B,T], read as one list. Only the first `count` are computed.
    """

    def read(logits: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        hit = jnp.take_along_axis(logits, wanted[:, None], axis=-1)
        if likeliest == 1:  # many times as fast as a sort
            best = jnp.argmax(logits, axis=-1, keepdims=True).astype(jnp.int32)
            values = jnp.take_along_axis(logits, best, axis=-1)
        else:
            values, best = jax.lax.top_k(logits, likeliest)
        return (hit - total)[:, 0], best, values - total

    x = gpt.features(params, tokens, model, compute)
    x = x.reshape(-1, x.shape[-1])[at]
    return read_logits(params, x, targets, count, model, head, read)


def _batches(
    prompts: Sequence[Sequence[int]], sizes: Sizes, longest: int
) -> Iterator[tuple[list[int], int, int]]:
    """Places of prompts that go together, and the shape [rows, time] of their batch."""
    by_time: dict[int, list[int]] = {}
    for place, length in enumerate(map(len, prompts)):
        time = bucket(length, SMALLEST, max(longest, length), sizes.steps)
        by_time.setdefault(time, []).append(place)
    for time, places in sorted(by_time.items()):
        most = max(1, sizes.tokens // time)
        for start in range(0, len(places), most):
            part = places[start : start + most]
            rows = 1
            while rows < len(part):
                rows *= ROWS
            yield part, min(rows, most), time


def _arrays(prompts: Sequence[Sequence[int]], rows: int, time: int) -> tuple[np.ndarray, ...]:
    """`tokens`, `at`, `targets` and `count` of `_scores`; the last target of a prompt is any."""
    tokens = np.zeros((rows, time), np.int32)
    at, targets = np.zeros((2, rows * time), np.int32)
    count = 0
    for row, prompt in enumerate(prompts):
        size = len(prompt)
        tokens[row, :size] = prompt
        at[count : count + size] = row * time + np.arange(size)
        targets[count : count + size - 1] = prompt[1:]
        count += size
    return tokens, at, targets, np.asarray(count, np.int32)
