"""Which tokens the rows of a dispatch may draw, as their grammars have it.

What may follow a token of a grammar only the host knows, so a row with one draws a single token of
a dispatch, after those that are forced; or several, as long as they are plain characters of a
string (see `Matcher.may_run`). Rows without a grammar are as without their company.

Axes: B slots of the engine, V vocabulary, W = ceil(V/32) words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float32, Int32, UInt32

from jaxchat.inference.sequence import SequenceState

FREE, ONE, RUN = 0, 1, 2  # no grammar; one token is drawn; plain ones may follow each other


class Masks(NamedTuple):
    """The masks of a dispatch as the host packs them."""

    allowed: ArrayLike  # [B,W] uint32: bit i of word j is token 32j+i
    kind: ArrayLike  # [B] int32: FREE, ONE or RUN
    plain: ArrayLike  # [W] uint32: tokens after which a row that is RUN draws on
    steps: ArrayLike  # [] int32: of the dispatch


class TokenMasks(NamedTuple):
    """The same where it is used: a truth value for each token that may be drawn."""

    allowed: Bool[Array, "B V"]
    kind: Int32[Array, " B"]
    plain: UInt32[Array, " W"]


def free_masks(slots: int, vocab: int, steps: int) -> Masks:
    """Masks that allow everything."""
    words = -(-vocab // 32)
    everything = np.full((slots, words), 0xFFFFFFFF, np.uint32)
    return Masks(everything, np.zeros(slots, np.int32), everything[0], np.int32(steps))


def packed_masks(rows: Sequence[SequenceState | None], steps: int, vocab: int) -> Masks:
    """The masks of the next dispatch, of `steps` steps.

    Where all rows have grammars there are as many as none of them has to wait in.
    """
    masks = free_masks(len(rows), vocab, steps)
    allowed, kind, plain = np.asarray(masks.allowed), np.asarray(masks.kind), masks.plain
    reach = []  # the steps in which each row has a token
    for slot, row in enumerate(rows):
        if row is None:
            continue
        reach.append(steps)
        if row.matcher is not None:
            plain = row.matcher.vocabulary.plain
            row.matcher.fill(allowed[slot])
            runs = row.matcher.may_run(steps, row.limit - len(row.tokens))
            kind[slot] = RUN if runs else ONE
            reach[-1] = steps if runs else min(steps, len(row.forced_tokens) + 1)
    free = any(row is not None and row.matcher is None for row in rows)
    return Masks(allowed, kind, plain, np.int32(steps if free else min(reach)))


def unpacked(masks: Masks, vocab: int) -> TokenMasks:
    """Words as truth values."""
    words = jnp.asarray(masks.allowed)
    places = jnp.arange(32, dtype=jnp.uint32)[None, None, :]
    bits = words[:, :, None] >> places & jnp.uint32(1)
    allowed = bits.reshape(words.shape[0], -1)[:, :vocab] != 0
    return TokenMasks(allowed, jnp.asarray(masks.kind), jnp.asarray(masks.plain))


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
