"""A byte-level BPE tokenizer: trained by the Rust crate `bpe_rs`, encoding through tiktoken.

Ids: the mergeable tokens by rank (the 256 bytes first), then the special tokens in the order of
SPECIAL_TOKENS. Ordinary text never becomes a special token, whatever it says.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from jaxchat import _bpe
from jaxchat.home import atomic_open, sha256_text, write_json

# GPT-4's pattern (cl100k_base) with numbers cut into at most two digits instead of three: small
# vocabularies have better uses for a thousand tokens. The pattern and the tokens are nanochat's.
SPLIT_PATTERN = "|".join(
    [
        r"'(?i:[sdmt]|ll|ve|re)",  # English contractions
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",  # a word, with the space or sign before it
        r"\p{N}{1,2}",  # numbers
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, with the line's end
        r"\s*[\r\n]",  # blank lines
        r"\s+(?!\S)",  # spaces, but for the one before a word
        r"\s+",
    ]
)
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
FORMAT = "jaxchat-tokenizer-1"
SETTINGS_FILE = "tokenizer.json"
RANKS_FILE = "tokenizer.tiktoken"
# The regex engine's stack holds a million spaces. The lookbehind keeps the search linear.
MAX_SPACES = 900_000
_TOO_MANY_SPACES = re.compile(rf"(?<!\s)\s{{{MAX_SPACES + 1}}}")


class TokenizerError(ValueError):
    """A tokenizer that cannot be made, loaded or used as asked; the message says why."""


class Tokenizer:
    """Immutable; safe to share between threads.

    Attributes:
        vocab_size: V, the special tokens included.
        pattern: the regular expression whose matches are encoded one by one.
        hash: sha256 over pattern, special tokens and ranks; equal hashes give equal ids.
        bos: the id of `<|bos|>`.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN) -> None:
        """`tokens`: the bytes of the mergeable tokens in rank order, the 256 bytes among them."""
        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) < len(tokens) or b"" in ranks:
            raise TokenizerError("the tokens of a vocabulary must be distinct and not empty.")
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise TokenizerError("a vocabulary must hold each of the 256 bytes as a token.")
        self._tokens = tuple(tokens)
        self._specials = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        try:
            self._encoding = tiktoken.Encoding(
                name="jaxchat",
                pat_str=pattern,
                mergeable_ranks=ranks,
                special_tokens=self._specials,
            )
        except ValueError as error:
            raise TokenizerError(f"the pattern {pattern!r} is not valid: {error}.") from error
        self.pattern = pattern
        self.vocab_size = len(ranks) + len(self._specials)
        self.hash = sha256_text(pattern, *SPECIAL_TOKENS, self._ranks_text())
        self.bos = self._specials["<|bos|>"]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        progress: Callable[[int], object] | None = None,
        threads: int = 0,
    ) -> Tokenizer:
        """Learns a vocabulary of `vocab_size` ids; texts are streamed, never held all at once.

        The result depends on the texts alone, not on `threads` (0: one per core); how ties are
        broken is said in `_bpe.train`. The vocabulary comes out smaller than asked when the texts
        have too few pairs to merge. `progress` is told, about ten times a second and at the end,
        how many of the `vocab_size - MIN_VOCAB_SIZE` merges are done.

        Raises TokenizerError for a vocabulary under MIN_VOCAB_SIZE, TypeError for an item that is
        not str, ValueError for one with lone surrogates.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise TokenizerError(
                f"vocab_size is {vocab_size}; the 256 bytes and {len(SPECIAL_TOKENS)} special "
                f"tokens need at least {MIN_VOCAB_SIZE}."
            )
        mergeable = vocab_size - len(SPECIAL_TOKENS)
        return cls(_bpe.train(texts, mergeable, SPLIT_PATTERN, progress, threads))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads what `save` wrote. Raises TokenizerError when it is absent, foreign or damaged."""
        try:
            settings = _parse_settings(_read(folder / SETTINGS_FILE))
            tokens = _parse_ranks(_read(folder / RANKS_FILE))
            tokenizer = cls(tokens, settings["pattern"])
            if tokenizer._settings() != settings:  # the hash among them
                raise TokenizerError(f"{SETTINGS_FILE} was not written for this {RANKS_FILE}")
        except ValueError as error:
            reason = str(error).removesuffix(".")
            raise TokenizerError(
                f"no usable tokenizer in {folder}: {reason}. "
                "Train it again, or name another folder."
            ) from error
        return tokenizer

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.tiktoken` and `tokenizer.json`, each whole or not at all.

        The settings come last and carry the hash, so an interrupted save is noticed by `load`.
        """
        with atomic_open(folder / RANKS_FILE) as file:
            file.write(self._ranks_text())
        write_json(folder / SETTINGS_FILE, self._settings())

    def special(self, name: str) -> int:
        """The id of a special token, for example `<|user_start|>`."""
        if name not in self._specials:
            known = ", ".join(self._specials)
            raise TokenizerError(f"{name!r} is not a special token; there are {known}.")
        return self._specials[name]

    def is_ordinary(self, token: int) -> bool:
        """Whether an id stands for bytes of text: no special token, and in the vocabulary."""
        return 0 <= token < len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text.

        Raises TokenizerError for lone surrogates, and for over MAX_SPACES spaces in a row.
        """
        _check_text(text)
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[list[int]]:
        """`encode` of each text, on several threads (0: one per core)."""
        for text in texts:
            _check_text(text)
        threads = threads or os.cpu_count() or 1
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids. Raises TokenizerError for an id outside the vocabulary."""
        try:
            return self._encoding.decode_bytes(ids)
        except (KeyError, OverflowError) as error:
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise TokenizerError(
                f"token id {bad} is outside the vocabulary of {self.vocab_size}."
            ) from error

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int32]:
        """[V] bytes that each token stands for, 0 for special tokens: for bits per byte."""
        lengths = np.zeros(self.vocab_size, np.int32)
        lengths[: len(self._tokens)] = [len(token) for token in self._tokens]
        lengths.flags.writeable = False
        return lengths

    def _ranks_text(self) -> str:
        lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(self._tokens))
        return "".join(lines)

    def _settings(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "pattern": self.pattern,
            "special_tokens": self._specials,
            "hash": self.hash,
        }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{path.name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path.name} is not text") from error


def _parse_settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{SETTINGS_FILE} is not JSON ({error})") from error
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise TokenizerError(f"{SETTINGS_FILE} does not say that its format is {FORMAT!r}")
    if not isinstance(settings.get("pattern"), str):
        raise TokenizerError(f"{SETTINGS_FILE} has no pattern")
    return settings


def _parse_ranks(text: str) -> list[bytes]:
    """The tokens of tiktoken's text format: a line `base64 rank` per token, by rank from 0."""
    tokens = []
    for expected, line in enumerate(text.splitlines()):
        token, _, rank = line.partition(" ")
        if rank != str(expected):
            raise TokenizerError(f"line {expected + 1} of {RANKS_FILE} is not the rank {expected}")
        try:
            tokens.append(base64.b64decode(token, validate=True))
        except binascii.Error as error:
            raise TokenizerError(f"line {expected + 1} of {RANKS_FILE} is not base64") from error
    return tokens


def _check_text(text: str) -> None:
    """Refuses what tiktoken would alter silently (lone surrogates) or would panic at."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"the text is not valid Unicode: lone surrogate at character {error.start}."
        ) from error
    if len(text) > MAX_SPACES and _TOO_MANY_SPACES.search(text):
        raise TokenizerError(
            f"the text has more than {MAX_SPACES} spaces in a row; cut it into smaller texts."
        )
