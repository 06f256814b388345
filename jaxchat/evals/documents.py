"""Bits per byte of whole documents: every byte counts once, whatever tokenizer and rows are.

The rows that a run holds out depend on its tokenizer and on their length: other settings measure
other text. Here the text is fixed in bytes, so that models of any recipe can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxchat.evals.bpb import bits_of_text
from jaxchat.evals.model import EvalModel
from jaxchat.tokenizer import Tokenizer


class TextBits(NamedTuple):
    """What a model needs for some documents."""

    bits_per_byte: float
    bytes: int  # of all documents as UTF-8
    tokens: int  # of the model's tokenizer


class DocumentRows:
    """Documents as rows of T+1 ids, each id predicted exactly once.

    Like rows of training text, one begins with BOS and holds documents one after the other, each
    with a BOS before it; a document that does not end with its row continues in the next. What
    the last row lacks is masked.
    """

    def __init__(self, documents: Sequence[str], tokenizer: Tokenizer, sequence_len: int) -> None:
        ids, offsets = tokenizer.encode_batch(documents, prepend="<|bos|>")
        self.tokens = len(ids) - (len(offsets) - 1)
        predicted = ids[1:]  # the first BOS is the first row's
        count = -(-len(predicted) // sequence_len)
        padded = np.full(count * sequence_len, tokenizer.bos, ids.dtype)
        padded[: len(predicted)] = predicted
        bos = np.full((count, 1), tokenizer.bos, ids.dtype)
        self._rows = np.hstack([bos, padded.reshape(count, sequence_len)])

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in batches of `size`; rows that the last one lacks are masked.

        What pads a row is BOS, which has no bytes and so counts for nothing.
        """
        for first in range(0, count, size):
            places = np.arange(first, first + size)
            tokens = self._rows[np.minimum(places, count - 1)]
            mask = np.broadcast_to((places < count)[:, None], tokens.shape)
            yield {"tokens": tokens, "mask": mask.astype(np.float32)}


def bits_of_documents(model: EvalModel, documents: Sequence[str], title: str) -> TextBits:
    """Bits per byte of all `documents`, split over the model's mesh.

    Raises ArtifactError when they have no byte to predict.
    """
    rows = DocumentRows(documents, model.tokenizer, model.config.sequence_len)
    size = sum(len(document.encode()) for document in documents)
    return TextBits(bits_of_text(model, rows, len(rows), title), size, rows.tokens)
