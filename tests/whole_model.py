"""The model over whole rows, and weights for tests, each as one program.

Dispatched operation by operation, each one is a program of its own to compile.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.model import gpt
from jaxchat.model.backend import bucket

forward = jax.jit(gpt.forward, static_argnames=("config", "compute"))
features = jax.jit(gpt.features, static_argnames=("config", "compute"))
prefill = jax.jit(gpt.prefill, static_argnames=("config", "compute"))
decode = jax.jit(gpt.decode, static_argnames=("config", "compute"))


@functools.partial(jax.jit, static_argnames="scale")
def shaken(params: Any, seed: int, scale: float) -> Any:
    """Parameters with noise, so that none is zero: what those hide is seen."""
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params))))
    return jax.tree.map(
        lambda x: x + scale * jax.random.normal(next(keys), x.shape, x.dtype), params
    )


def logprobs_of(params: Any, tokens: Sequence[int], config: ModelConfig) -> np.ndarray:
    """Log-probabilities [T,V] of what follows each token of one text.

    What is behind the text, to one of few lengths, is not seen: each length is a program.
    """
    row = np.zeros((1, bucket(len(tokens), 64, config.sequence_len)), np.int32)
    row[0, : len(tokens)] = tokens
    logits = np.asarray(forward(params, row, config), np.float64)[0, : len(tokens)]
    found: np.ndarray = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return found
