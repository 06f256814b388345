"""What docs/screening.md tries and no setting does: prototypes, which only a winner leaves."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import PLAIN, Compute
from jaxchat.model.rope import rope_table
from jaxchat.optim import optimizer

EVERY = 4  # steps, of the switch `fourth`
POOL = 1_000  # documents that cropping chooses from


def crop(ids: np.ndarray, starts: np.ndarray, row: int) -> np.ndarray:
    """nanochat's packing [N, row]: of waiting documents the longest that fits; where none fits the
    shortest is cut at the row's end, and its rest is lost.
    """
    arriving = iter(enumerate(np.diff(starts).tolist()))
    waiting: list[tuple[int, int]] = []  # (length, document)
    made: list[np.ndarray] = []
    while True:
        parts, space = [], row
        while space:
            for document, size in itertools.islice(arriving, POOL - len(waiting)):
                bisect.insort(waiting, (size, document))
            if not waiting:
                return np.stack(made)
            fits = bisect.bisect_left(waiting, (space + 1, -1)) - 1
            size, document = waiting.pop(max(fits, 0))
            parts.append(ids[starts[document] :][: min(size, space)])
            space -= len(parts[-1])
        made.append(np.concatenate(parts))


def within_documents(*_: Any, **__: Any) -> jax.Array:
    """Marks a Compute whose attention sees its own document alone (`masked_features`)."""
    raise NotImplementedError


def masked_features(bos: int) -> Any:
    """`gpt.features` where attention may be `within_documents`: in rows, BOS begins each."""
    plain = gpt.features

    def features(
        params: Any, tokens: jax.Array, config: ModelConfig, compute: Compute = PLAIN,
        rounded: Any = None,
    ) -> jax.Array:  # fmt: skip
        if compute.attention is not within_documents:
            return plain(params, tokens, config, compute, rounded)
        number = jnp.cumsum(tokens == bos, axis=1)
        same = (number[:, :, None] == number[:, None, :])[:, None]  # [B, 1, T, T]
        specs = gpt.layer_specs(config)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[Any, None]:
            window = (specs[layer].window, 0)
            return jax.nn.dot_product_attention(
                q, k, v, mask=same, is_causal=True, local_window_size=window
            ), None

        rope = rope_table(jnp.arange(tokens.shape[1])[None, :], config, compute.dtype)
        return gpt.apply(params, tokens, rope, None, attend, config, compute)[0]

    return features


def rare_embeddings(every: int) -> Any:
    """`optimizer.adamw_chain` that updates embeddings by the mean of `every` gradients."""
    plain = optimizer.adamw_chain

    def chain(group: Any) -> Any:
        if "embedding" not in group.label:
            return plain(group)
        return optax.MultiSteps(plain(group), every).gradient_transformation()

    return chain


@contextlib.contextmanager
def prototype(name: str, bos: int) -> Iterator[Compute]:
    """How the models of a variant are computed; in the block its prototype is in place."""
    if name == "documents":
        with mock.patch.object(gpt, "features", masked_features(bos)):
            yield Compute(attention=within_documents)
    elif name == "fourth":
        with mock.patch.object(optimizer, "adamw_chain", rare_embeddings(EVERY)):
            yield PLAIN
    else:
        yield PLAIN
