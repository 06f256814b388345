"""Multiple choice by letters: the one the model finds likeliest, many problems at once.

Nothing is sampled: a problem is answered by the letter with the highest logit after its prompt, so
that a model that would say something else is not at chance (nanochat's categorical tasks).

Axes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.request import cut_prompt
from jaxchat.model import gpt
from jaxchat.model.backend import PLAIN, Compute, backend, bucket
from jaxchat.tasks.multiple_choice import ChoiceProblem
from jaxchat.tokenizer import Tokenizer, render_prompt

SMALLEST = 32  # tokens of a row


def choose_letters(
    params: Any,
    problems: Sequence[ChoiceProblem],
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    compute: Compute = PLAIN,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """The letter that each problem is answered with, in the order of the problems.

    A prompt longer than the context loses its beginning, but for <|bos|>. `progress` is
    called with the number of problems done. Raises ValueError for a letter that is not one token.
    """
    said = (render_prompt(p.conversation["messages"][:-1], tokenizer) for p in problems)
    room = {"max_tokens": 0, "context": model.sequence_len}  # nothing is sampled
    prompts = [cut_prompt(tuple(ids), bos=tokenizer.bos, **room) for ids in said]
    letters = [[_token(letter, tokenizer) for letter in problem.letters] for problem in problems]
    budget = backend().letter_tokens
    chosen = [""] * len(problems)
    done = 0
    for places, size in _batches(list(map(len, prompts)), budget, model.sequence_len):
        rows = max(1, budget // size)  # always as many: one shape a size
        tokens = np.full((rows, size), tokenizer.bos, np.int32)
        last = np.zeros(rows, np.int32)
        for row, place in enumerate(places):
            tokens[row, : len(prompts[place])] = prompts[place]
            last[row] = len(prompts[place]) - 1
        logits = np.asarray(_last_logits(params, tokens, last, model=model, compute=compute))
        for row, place in enumerate(places):
            best = int(np.argmax(logits[row, letters[place]]))
            chosen[place] = problems[place].letters[best]
        done += len(places)
        if progress is not None:
            progress(done)
    return chosen


@functools.partial(jax.jit, static_argnames=("model", "compute"))
def _last_logits(
    params: Any, tokens: jax.Array, last: jax.Array, *, model: ModelConfig, compute: Compute
) -> jax.Array:
    """Logits [B,V] after token `last` [B] of rows [B,T]."""
    x = gpt.features(params, tokens, model, compute)
    return gpt.unembed(params, x[jnp.arange(len(last)), last], model, compute)


def _token(letter: str, tokenizer: Tokenizer) -> int:
    ids = tokenizer.encode(letter)
    if len(ids) != 1:
        raise ValueError(f"the letter {letter!r} is {len(ids)} tokens; it must be one.")
    return ids[0]


def _batches(lengths: Sequence[int], budget: int, longest: int) -> Iterator[tuple[list[int], int]]:
    """Places of rows that go together, and the size they are padded to: a power of two."""
    sizes: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        sizes.setdefault(bucket(length, SMALLEST, max(longest, length)), []).append(place)
    for size, places in sorted(sizes.items()):
        rows = max(1, budget // size)
        for start in range(0, len(places), rows):
            yield places[start : start + rows], size
