"""What the engine hands to the device, as NumPy arrays of few different shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jaxchat.inference.jitted import SLOT, DecodeOutput
from jaxchat.inference.request import Alternatives
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


def packed_slots(slots: Sequence[SequenceState | None], steps: int) -> npt.NDArray[np.int32]:
    """The slots as the device gets them, [B,9+steps]."""
    packed = np.zeros(len(slots), [*SLOT, ("forced", "i4", (steps,))])
    packed["top_p"] = 1.0  # an empty slot is greedy
    for slot, row in enumerate(slots):
        if row is not None:
            forced, r = list(row.forced_tokens)[:steps], row.request
            packed[slot] = (
                row.last, True, row.limit - len(row.tokens), len(forced),
                r.temperature, r.top_k, r.top_p, r.seed % 2**32, row.stream,
                forced + [0] * (steps - len(forced)),
            )  # fmt: skip
    return packed.view(np.int32).reshape(len(slots), -1)


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
