"""Which tokens the rows of a dispatch may draw, as their grammars have it.

What may follow a token of a grammar only the host knows, so a row with one draws a single token of
a dispatch, after those that are forced; or several, as long as they are plain characters of a
string (see `Matcher.may_run`). Rows without a grammar are as without their company.

The device gets one array of 32-bit words: a row for each slot, its tokens as bits (bit i of word j
is token 32j+i) and behind them its kind; then a row of the plain tokens, and behind them the steps
of the dispatch.

Axes: B slots of the engine, V vocabulary, W = ceil(V/32) words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jaxtyping import Bool, Float32, Int32, UInt32

from jaxchat.inference.sequence import SequenceState

FREE, ONE, RUN = 0, 1, 2  # no grammar; one token is drawn; plain ones may follow each other
Packed = npt.NDArray[np.uint32]  # [B+1,W+1]


class TokenMasks(NamedTuple):
    """The masks of a dispatch on the device."""

    allowed: Bool[Array, "B V"]  # tokens that may be drawn
    kind: UInt32[Array, " B"]  # FREE, ONE or RUN
    plain: UInt32[Array, " W"]  # tokens after which a row that is RUN draws on
    steps: Int32[Array, ""]


def free_masks(slots: int, vocab: int, steps: int) -> Packed:
    """Masks that allow everything."""
    packed = np.full((slots + 1, -(-vocab // 32) + 1), 0xFFFFFFFF, np.uint32)
    packed[:, -1] = FREE
    packed[-1, -1] = steps
    return packed


def packed_masks(rows: Sequence[SequenceState | None], steps: int, vocab: int) -> Packed:
    """The masks of the next dispatch, of `steps` steps.

    Where all rows have grammars there are as many as none of them has to wait in.
    """
    packed = free_masks(len(rows), vocab, steps)
    reach, free = steps, False  # the steps in which every row has a token
    for slot, row in enumerate(rows):
        if row is None:
            continue
        if row.matcher is None:
            free = True
            continue
        packed[-1, :-1] = row.matcher.vocabulary.plain
        row.matcher.fill(packed[slot, :-1])
        runs = row.matcher.may_run(steps, row.limit - len(row.tokens))
        packed[slot, -1] = RUN if runs else ONE
        reach = reach if runs else min(reach, len(row.forced_tokens) + 1)
    packed[-1, -1] = steps if free else reach
    return packed


def unpacked_masks(packed: UInt32[Array, "B+1 W+1"], vocab: int) -> TokenMasks:
    """Packed masks, with a truth value for each token that may be drawn."""
    places = jnp.arange(32, dtype=jnp.uint32)[None, None, :]
    bits = packed[:-1, :-1, None] >> places & jnp.uint32(1)
    allowed = bits.reshape(packed.shape[0] - 1, -1)[:, :vocab] != 0
    return TokenMasks(allowed, packed[:-1, -1], packed[-1, :-1], packed[-1, -1].astype(jnp.int32))


def pauses_after(masks: TokenMasks, token: Int32[Array, " B"]) -> Bool[Array, " B"]:
    """Whether a row draws no more in this dispatch, after a token that it has drawn."""
    place = (token % 32).astype(jnp.uint32)
    plain = (masks.plain[token // 32] >> place & jnp.uint32(1)) != 0
    after: Array = (masks.kind == ONE) | ((masks.kind == RUN) & ~plain)
    return after


def masked(
    logits: Float32[Array, "B V"],
    masks: TokenMasks,
    changed: Float32[Array, "B V"] | None = None,
) -> Float32[Array, "B V"]:
    """The logits to draw from: the allowed ones of `changed`, or of the model's where none is."""
    own = jnp.where(masks.allowed, logits, -jnp.inf)
    if changed is None:
        return own
    shaped = jnp.where(masks.allowed, changed, -jnp.inf)
    return jnp.where(jnp.max(shaped, axis=-1, keepdims=True) == -jnp.inf, own, shaped)
