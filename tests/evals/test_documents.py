"""Bits per byte of whole documents: each byte once, whatever the tokenizer and the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from finished_run import random_params, tiny_config, tiny_tokenizer
from whole_model import forward

from jaxchat.errors import ArtifactError
from jaxchat.evals.documents import DocumentRows, bits_of_documents
from jaxchat.evals.model import EvalModel
from jaxchat.model import gpt
from jaxchat.tokenizer import train_tokenizer

TEXTS = ["who are you? ", "Äpfel und Birnen, how many are there? " * 9, "x", "are you many " * 30]
SIZE = sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("length", [2, 7, 64, 5_000])
@pytest.mark.parametrize("vocabulary", [266, 290])
def test_every_byte_is_predicted_once_whatever_the_rows(length: int, vocabulary: int) -> None:
    tokenizer = train_tokenizer(["who are you and how many are there "] * 9, vocabulary)
    rows = DocumentRows(TEXTS, tokenizer, length)
    size, read = 0.0, list[int]()
    for batch in rows.batches(len(rows), 3):
        assert batch["tokens"].shape == (3, length + 1)
        targets = batch["tokens"][:, 1:][batch["mask"][:, 1:] > 0]
        size += tokenizer.token_bytes[targets].sum()
        read += targets.tolist()
        assert (batch["tokens"][:, 0] == tokenizer.bos).all()
    assert size == SIZE
    ordinary = [token for token in read if tokenizer.token_bytes[token]]
    assert tokenizer.decode(ordinary) == "".join(TEXTS)
    assert len(ordinary) == rows.tokens


def test_bits_are_those_of_a_forward_pass_by_hand() -> None:
    config, tokenizer = tiny_config(), tiny_tokenizer()
    model = replace(config.model, sequence_len=16)
    params = random_params(0, config)
    found = bits_of_documents(EvalModel(lambda: params, model, tokenizer), TEXTS, "test")
    nats, rows = 0.0, DocumentRows(TEXTS, tokenizer, 16)
    for batch in rows.batches(len(rows), 1):
        ids = batch["tokens"].astype(np.int32)
        logits = np.asarray(forward(params, ids[:, :-1], model), np.float64)
        chosen = np.take_along_axis(logits, ids[:, 1:, None].astype(np.int64), -1)[..., 0]
        losses = np.log(np.exp(logits).sum(-1)) - chosen
        nats += losses[tokenizer.token_bytes[ids[:, 1:]] > 0].sum()
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / SIZE, rel=1e-5)
    assert (found.bytes, found.tokens) == (SIZE, rows.tokens)


def test_documents_without_a_byte_are_reported() -> None:
    config = tiny_config()
    params = gpt.init_params(jax.random.key(0), config.model)
    model = EvalModel(lambda: params, config.model, tiny_tokenizer())
    with pytest.raises(ArtifactError, match="no rows"):
        bits_of_documents(model, [], "test")
