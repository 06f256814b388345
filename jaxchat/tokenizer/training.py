"""Training a tokenizer: byte-level BPE by the Rust crate `bpe_rs`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxchat import _bpe
from jaxchat.errors import TokenizerError
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.patterns import SPLIT_PATTERN
from jaxchat.tokenizer.special import MIN_VOCAB_SIZE, SPECIAL_TOKENS


class TrainingReport(NamedTuple):
    """What the trainer saw.

    `pretokens` counts every occurrence, `distinct` what was left to merge. With `max_words`,
    `dropped` says how many times a rare pre-token was dropped, and `dropped_pretokens` how many
    occurrences went with them.
    """

    texts: int
    bytes: int
    pretokens: int
    distinct: int
    dropped: int
    dropped_pretokens: int


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = SPLIT_PATTERN,
    *,
    progress: Callable[[int], object] | None = None,
    report: Callable[[TrainingReport], object] | None = None,
    threads: int | None = None,
    max_words: int | None = None,
) -> Tokenizer:
    """Learns a vocabulary of `vocab_size` ids; texts are streamed, never held all at once.

    The result depends on the texts alone, not on `threads` (None: one per core, and never more);
    how ties are broken is said in `_bpe.train`. The vocabulary comes out smaller than asked when
    the texts have too few pairs to merge. Memory grows with the distinct pre-tokens; beyond
    `max_words` of them the rarest are dropped until half as many are left, which changes merges of
    rare pairs only.

    `progress` is told, about ten times a second and at the end, how many of the `vocab_size -
    MIN_VOCAB_SIZE` merges are done. `report` is told once what was counted.

    Raises TokenizerError for a vocabulary under MIN_VOCAB_SIZE and a pattern that does not compile,
    TypeError for an item that is not str, ValueError for one with lone surrogates.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise TokenizerError(
            f"vocab_size is {vocab_size}; the 256 bytes and {len(SPECIAL_TOKENS)} special "
            f"tokens need at least {MIN_VOCAB_SIZE}."
        )
    try:
        tokens, counts = _bpe.train(
            texts,
            vocab_size - len(SPECIAL_TOKENS),
            pattern,
            progress,
            min(threads or 0, os.cpu_count() or 1),
            max_words or 0,
        )
    except _bpe.PatternError as error:
        raise TokenizerError(str(error)) from error
    if report is not None:
        report(TrainingReport(*counts))
    return Tokenizer(tokens, pattern)
