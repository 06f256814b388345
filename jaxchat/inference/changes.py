"""What requests change of the logits before a token is drawn: biases, penalties, held-back tokens.

In this order, which is vLLM's (`vllm/v1/sample/sampler.py`); x is a token's logit:

- logit_bias (OpenAI's API reference): x + b.
- repetition_penalty r (Keskar et al. 2019, "CTRL", section 4.1, as transformers'
  `RepetitionPenaltyLogitsProcessor` has it for negative logits), for tokens of the prompt or the
  answer: x / r where x > 0, else x r.
- frequency_penalty f and presence_penalty p (OpenAI's API reference), for a token that the answer
  has c times: x - f c - p [c > 0].
- Held-back tokens (`ignore_eos`, `min_tokens`) are never drawn while another is left.

min_p, which is no change of a logit, is `sampling.sample`'s. What a tool puts into an answer was
not chosen by the model: it counts as a part of the prompt.

Axes: B slots of the engine, V vocabulary, L positions of the cache. What a row gets depends on its
own text and settings alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax
from jaxtyping import Bool, Float32, Int32

from jaxchat.inference.request import MAX_BIASES, MAX_STOP_IDS, Request
from jaxchat.inference.sequence import SequenceState

HELD = -1e30  # a logit that no other is below; finite, should nothing but held tokens be left
MOST_HELD = 2 + MAX_STOP_IDS  # the two ends of an answer, and a request's own
# What the device gets of a slot, as 32-bit columns of one array; the text, [L], stands behind them.
COLUMNS = (
    ("least", "f4", ()),
    ("repetition", "f4", ()),
    ("frequency", "f4", ()),
    ("presence", "f4", ()),
    ("length", "i4", ()),
    ("bias_ids", "i4", (MAX_BIASES,)),
    ("biases", "f4", (MAX_BIASES,)),
    ("held_ids", "i4", (MOST_HELD,)),
    ("held_until", "i4", (MOST_HELD,)),
)


class Changes(NamedTuple):
    """What is changed for each slot; the id V is nobody's."""

    least: Float32[Array, " B"]  # log of min_p
    repetition: Float32[Array, " B"]
    frequency: Float32[Array, " B"]
    presence: Float32[Array, " B"]
    length: Int32[Array, " B"]  # of the answer, in tokens
    bias_ids: Int32[Array, "B biases"]
    biases: Float32[Array, "B biases"]
    held_ids: Int32[Array, "B held"]
    held_until: Int32[Array, "B held"]  # length of the answer from which a token may be drawn
    text: Int32[Array, "B L"]  # ids that the model chose; ~id for those of prompt and tools


class Counts(NamedTuple):
    """The tokens of each slot's text."""

    seen: Bool[Array, "B V"]  # in the prompt or the answer
    chosen: Int32[Array, "B V"]  # how often the model has chosen it


def packed_changes(
    slots: Sequence[SequenceState | None], positions: int, vocab: int, ends: Sequence[int]
) -> npt.NDArray[np.int32]:
    """The changes as the device gets them, [B,columns+L].

    `positions` are the cache's, which hold every text; `ends` are the tokens that end an answer.
    """
    packed = np.zeros(len(slots), [*COLUMNS, ("text", "i4", (positions,))])
    packed["least"], packed["repetition"] = -np.inf, 1.0
    for name in ("bias_ids", "held_ids", "text"):
        packed[name] = vocab
    for slot, row in enumerate(slots):
        if row is not None and row.request.changes_logits:
            _pack(packed[slot], row, ends)
    return packed.view(np.int32).reshape(len(slots), -1)


def _pack(cell: np.void, row: SequenceState, ends: Sequence[int]) -> None:
    """Writes a row's changes into its cell."""
    request = row.request
    cell["least"] = math.log(request.min_p) if request.min_p else -math.inf
    cell["repetition"] = request.repetition_penalty
    cell["frequency"], cell["presence"] = request.frequency_penalty, request.presence_penalty
    cell["length"] = len(row.tokens)
    for number, (token, bias) in enumerate(request.logit_bias):
        cell["bias_ids"][number], cell["biases"][number] = token, bias
    for number, (token, until) in enumerate(_held(request, ends)):
        cell["held_ids"][number], cell["held_until"][number] = token, until
    if request.penalizes:
        prompt, answer = np.array(request.tokens), np.array(row.tokens, np.int32)
        text = np.concatenate([~prompt, np.where(np.array(row.mask) == 1, answer, ~answer)])
        cell["text"][: len(text)] = text


def _held(request: Request, ends: Sequence[int]) -> list[tuple[int, int]]:
    """Tokens that may not come before the answer has a length, each with that length."""
    until = np.iinfo(np.int32).max if request.ignore_eos else request.min_tokens
    held = [(token, until) for token in ends if token >= 0] if until else []
    own = request.stop_token_ids if request.min_tokens else ()
    return held + [(token, request.min_tokens) for token in own if token not in dict(held)]


def unpacked_changes(packed: Array) -> Changes:
    """What `packed_changes` gives, on the device."""
    fields, start = list[Array](), 0
    for _, kind, shape in COLUMNS:
        width = math.prod(shape)
        field = packed[:, start : start + width].reshape(-1, *shape)
        fields.append(lax.bitcast_convert_type(field, jnp.dtype(kind)))
        start += width
    fields.append(packed[:, start:])
    return Changes(*fields)


def count(changes: Changes, vocab: int) -> Counts:
    """The tokens of the texts."""
    text = changes.text
    rows, ids = jnp.arange(len(text))[:, None], jnp.where(text >= 0, text, ~text)
    seen = jnp.zeros((len(text), vocab), bool).at[rows, ids].set(True, mode="drop")
    zeros = jnp.zeros((len(text), vocab), jnp.int32)
    return Counts(seen, zeros.at[rows, ids].add((text >= 0).astype(jnp.int32), mode="drop"))


def count_next(counts: Counts, token: Int32[Array, " B"], chosen: Bool[Array, " B"]) -> Counts:
    """The counts after one more token, which the model has `chosen` or a tool has put there."""
    rows = jnp.arange(len(token))
    return Counts(
        counts.seen.at[rows, token].set(True),
        counts.chosen.at[rows, token].add(chosen.astype(jnp.int32)),
    )


def change(
    logits: Float32[Array, "B V"], changes: Changes, counts: Counts, number: Int32[Array, ""]
) -> Float32[Array, "B V"]:
    """What a token is drawn from in step `number` of a dispatch; formulas: this file's beginning.

    A row without changes keeps its logits to the bit.
    """
    rows = jnp.arange(len(logits))[:, None]
    shaped = logits.astype(jnp.float32)
    shaped = shaped.at[rows, changes.bias_ids].add(changes.biases, mode="drop")
    factor = changes.repetition[:, None]
    penalized = jnp.where(shaped > 0, shaped / factor, shaped * factor)
    shaped = jnp.where(counts.seen, penalized, shaped)
    often = counts.chosen.astype(jnp.float32) * changes.frequency[:, None]
    shaped = shaped - often - jnp.where(counts.chosen > 0, changes.presence[:, None], 0.0)
    held = changes.length[:, None] + number < changes.held_until
    ids = jnp.where(held, changes.held_ids, logits.shape[1])
    shaped = shaped.at[rows, ids].set(HELD, mode="drop")
    changed: Array = lax.optimization_barrier(shaped)  # the same in every program
    return changed
