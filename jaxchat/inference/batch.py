"""What the engine hands to the device, as NumPy arrays of few different shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxchat.config.schema import ModelConfig
from jaxchat.inference.jitted import DecodeOutput, Rows
from jaxchat.inference.request import MAX_ALTERNATIVES, Alternatives
from jaxchat.inference.sampling import Sampling
from jaxchat.inference.sequence import SequenceState
from jaxchat.model.backend import bucket

MIN_PROMPT = 64  # tokens a prompt is padded to; longer ones to the next power of two
MIN_CACHE = 64  # positions of the cache that decoding looks at; then powers of two


def buckets(least: int, most: int) -> list[int]:
    """Every value of `bucket`."""
    found = [bucket(1, least, most)]
    while found[-1] < most:
        found.append(bucket(found[-1] + 1, least, most))
    return found


def slots_to_fill(slots: Sequence[int], total: int) -> npt.NDArray[np.int32]:
    """Slots as [total], padded with a number past the last slot."""
    filled = np.full(total, total, np.int32)
    filled[: len(slots)] = slots
    return filled


def padded(tokens: Sequence[int], length: int) -> tuple[npt.NDArray[np.int32], ...]:
    """Tokens as [1, length], padded on the right, and their number as [1]."""
    row = np.zeros((1, length), np.int32)
    row[0, : len(tokens)] = tokens
    return row, np.array([len(tokens)], np.int32)


def rows_for(slots: Sequence[SequenceState | None], steps: int) -> Rows:
    """The slots in the form that the device gets; a row that waits for a tool is not active."""
    forced = np.zeros((len(slots), steps), np.int32)
    token, remaining, count = np.zeros((3, len(slots)), np.int32)
    for slot, row in enumerate(slots):
        if row is None:
            continue
        queue = list(row.forced_tokens)[:steps]
        forced[slot, : len(queue)] = queue
        count[slot] = len(queue)
        token[slot] = row.last
        remaining[slot] = row.limit - len(row.tokens)
    active = np.array([row is not None and not row.waits for row in slots])
    return Rows(token, active, remaining, forced, count, sampling_of(slots))


def sampling_of(slots: Sequence[SequenceState | None]) -> Sampling:
    """The settings of rows; an empty slot is greedy."""
    requests = [row.request if row is not None else None for row in slots]
    settings: Any = (
        np.array([r.temperature if r else 0.0 for r in requests], np.float32),
        np.array([r.top_k if r else 0 for r in requests], np.int32),
        np.array([r.top_p if r else 1.0 for r in requests], np.float32),
        np.array([r.seed % 2**32 if r else 0 for r in requests], np.uint32),
        np.array([row.stream if row else 0 for row in slots], np.int32),
    )
    return Sampling(*settings)


def truncates(rows: Iterable[SequenceState]) -> bool:
    """Whether a row uses top_k or top_p."""
    return any(row.request.top_k > 0 or row.request.top_p < 1.0 for row in rows)


def alternatives_for(rows: Iterable[SequenceState], config: ModelConfig) -> int:
    """How many alternatives the device computes: none or all, so that little is compiled."""
    wanted = any(row.request.alternatives for row in rows)
    return min(MAX_ALTERNATIVES, config.vocab_size) if wanted else 0


def picks_of(output: DecodeOutput) -> list[list[tuple[int, float, Alternatives]]]:
    """For every slot its tokens of a dispatch: id, log-probability and alternatives."""
    arrays = [np.asarray(array) for array in output]
    counts = arrays[2].sum(axis=0).tolist()
    tokens, logprobs, _, others, values = (array.swapaxes(0, 1).tolist() for array in arrays)
    return [
        [
            (tokens[b][n], logprobs[b][n], tuple(zip(others[b][n], values[b][n], strict=True)))
            for n in range(count)
        ]
        for b, count in enumerate(counts)
    ]
