"""Which tokens the rows of a dispatch may draw, as their grammars have it.

What may follow a token of a grammar only the host knows, so a row with one draws a single token of
a dispatch, after those that are forced; or several, as long as they are plain characters of a
string or digits of a number (see `Matcher.reach`). Rows without a grammar are as without their
company.

The device gets one array of 32-bit words: a row for each slot, its tokens as bits (bit i of word j
is token 32j+i), its kind and how many it may draw; then a row of the plain tokens, and behind them
the steps of the dispatch; then one of digits.

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

from jaxchat.inference.grammar import DIGITS, FREE, TEXT
from jaxchat.inference.sequence import SequenceState

Packed = npt.NDArray[np.uint32]  # [B+2,W+2]


class TokenMasks(NamedTuple):
    """The masks of a dispatch on the device."""

    allowed: Bool[Array, "B V"]  # tokens that may be drawn
    kind: UInt32[Array, " B"]  # see `grammar`
    most: Int32[Array, " B"]  # tokens that may be drawn
    plain: UInt32[Array, "2 W"]  # tokens after which a row that is TEXT, or DIGITS, draws on
    steps: Int32[Array, ""]


def free_masks(slots: int, vocab: int, steps: int) -> Packed:
    """Masks that allow everything."""
    packed = np.full((slots + 2, -(-vocab // 32) + 2), 0xFFFFFFFF, np.uint32)
    packed[:, -2:] = FREE, steps
    return packed


def packed_masks(rows: Sequence[SequenceState | None], steps: int, vocab: int) -> Packed:
    """The masks of the next dispatch, of `steps` steps.

    Where all rows have grammars there are as many as none of them has to wait in.
    """
    packed = free_masks(len(rows), vocab, steps)
    least, free = steps, False  # the steps in which every row has a token
    for slot, row in enumerate(rows):
        if row is None:
            continue
        if row.matcher is None:
            free = True
            continue
        known = row.matcher.vocabulary.words_of
        packed[-2, :-2], packed[-1, :-2] = known[TEXT], known[DIGITS]
        row.matcher.fill(packed[slot, :-2])
        reach = row.matcher.reach(steps, row.limit - len(row.tokens))
        packed[slot, -2:] = reach
        least = min(least, len(row.forced_tokens) + reach[1])
    packed[-2, -1] = steps if free else least
    return packed


def unpacked_masks(packed: UInt32[Array, "B+2 W+2"], vocab: int) -> TokenMasks:
    """Packed masks, with a truth value for each token that may be drawn."""
    places = jnp.arange(32, dtype=jnp.uint32)[None, None, :]
    bits = packed[:-2, :-2, None] >> places & jnp.uint32(1)
    allowed = bits.reshape(packed.shape[0] - 2, -1)[:, :vocab] != 0
    counts = packed[:, -1].astype(jnp.int32)
    return TokenMasks(allowed, packed[:-2, -2], counts[:-2], packed[-2:, :-2], counts[-2])


def pauses_after(masks: TokenMasks, token: Int32[Array, " B"]) -> Bool[Array, " B"]:
    """Whether a row draws no more in this dispatch, after a token that it has drawn."""
    place = (token % 32).astype(jnp.uint32)[None, :]
    kinds = jnp.array([[TEXT], [DIGITS]], jnp.uint32)
    is_other = masks.plain[:, token // 32] >> place & jnp.uint32(1) == 0
    after: Array = jnp.any((masks.kind[None, :] == kinds) & is_other, axis=0)
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
