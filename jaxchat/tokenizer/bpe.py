"""A byte-level BPE tokenizer: a vocabulary and a pattern, encoding by the Rust crate `bpe_rs`.

Ids: the mergeable tokens by rank (the 256 bytes first), then the special tokens in the order of
SPECIAL_TOKENS: all, or only CHAT_TOKENS, without those of tools. Ordinary text never becomes a
special token, whatever it says. The ids are those that tiktoken gives with the same vocabulary and
pattern.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxchat import _bpe
from jaxchat.errors import TokenizerError
from jaxchat.paths import atomic_open, sha256_text, write_json
from jaxchat.tokenizer.huggingface import read_huggingface, write_huggingface
from jaxchat.tokenizer.patterns import (
    CHAT_TOKENS,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    covering,
    has_tools,
    uncovered,
)

if TYPE_CHECKING:
    import tiktoken

FORMAT = "jaxchat-tokenizer-1"
SETTINGS_FILE = "tokenizer.json"
RANKS_FILE = "tokenizer.tiktoken"


class Tokenizer:
    """Immutable; safe to share between threads.

    Attributes:
        tokens: the bytes of the mergeable tokens, by rank.
        vocab_size: V, the special tokens included.
        pattern: the regular expression whose matches, and the stretches between them, are encoded
            one by one.
        hash: sha256 over pattern, special tokens and ranks; equal hashes give equal ids.
        bos: the id of `<|bos|>`.
        specials: the ids of the special tokens, by name.
        has_tools: whether there are special tokens for the calls and outputs of tools.
    """

    def __init__(
        self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN, *, tools: bool = True
    ) -> None:
        """`tokens`: the bytes of the mergeable tokens in rank order, the 256 bytes among them."""
        try:
            self._encoder = _bpe.Encoder(list(tokens), pattern)
        except ValueError as error:
            raise TokenizerError(f"{error}.") from error
        self.tokens = tuple(tokens)
        self.has_tools = tools
        names = SPECIAL_TOKENS if tools else CHAT_TOKENS
        self.specials = {name: len(tokens) + i for i, name in enumerate(names)}
        self._bytes = (*tokens, *(name.encode() for name in names))
        self.pattern = pattern
        self.vocab_size = len(self._bytes)
        self.hash = sha256_text(pattern, *names, self._ranks_text())
        self.bos = self.specials["<|bos|>"]

    def __reduce__(self) -> tuple[Callable[[], Tokenizer], tuple[()]]:
        """For worker processes: the encoder is made again there."""
        return partial(Tokenizer, self.tokens, self.pattern, tools=self.has_tools), ()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads what `save` wrote. Raises TokenizerError when it is absent, foreign or damaged."""
        try:
            settings = _parse_settings(_read(folder / SETTINGS_FILE))
            tokens = parse_ranks(_read(folder / RANKS_FILE))
            tools = has_tools(settings["special_tokens"])
            tokenizer = cls(tokens, settings["pattern"], tools=tools)
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
        if name not in self.specials:
            known = ", ".join(self.specials)
            raise TokenizerError(f"{name!r} is not a special token; there are {known}.")
        return self.specials[name]

    def is_ordinary(self, token: int) -> bool:
        """Whether an id stands for bytes of text: no special token, and in the vocabulary."""
        return 0 <= token < len(self.tokens)

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> list[int]:
        """The ids of a text, in which only the names in `allowed_special` are special tokens.

        Raises TokenizerError for lone surrogates and names of no special token.
        """
        try:
            if not allowed_special:
                return self._encoder.encode(text)
            ids = {name: self.special(name) for name in allowed_special}
            parts = re.split("(" + "|".join(map(re.escape, ids)) + ")", text)
            known = [[ids[p]] if p in ids else self._encoder.encode(p) for p in parts]
        except ValueError as error:
            raise TokenizerError(str(error)) from error
        return [token for part in known for token in part]

    def encode_batch(
        self,
        texts: Iterable[str],
        prepend: str | None = None,
        append: str | None = None,
        threads: int | None = None,
    ) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
        """The ids of many texts, one after the other, and where each begins.

        Text n has `ids[offsets[n] : offsets[n + 1]]`, with the special tokens named `prepend` and
        `append` around it. `ids` is uint16 where the vocabulary allows, else uint32. The texts are
        shared between `threads` threads (None: one per core, and never more), with the interpreter
        lock released.

        Raises TypeError for an item that is not str, TokenizerError for lone surrogates.
        """
        before, after = ([self.special(name)] if name else [] for name in (prepend, append))
        wide = self.vocab_size > 1 << 16
        try:
            return self._encoder.encode_batch(texts, before, after, wide, _threads(threads))
        except ValueError as error:
            raise TokenizerError(str(error)) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids. Raises TokenizerError for an id outside the vocabulary."""
        bad = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if bad is not None:
            raise TokenizerError(f"token id {bad} is outside the vocabulary of {self.vocab_size}.")
        return b"".join([self._bytes[token] for token in ids])

    def to_tiktoken(self) -> tiktoken.Encoding:
        """The same tokenizer for tiktoken, special tokens included."""
        import tiktoken

        return tiktoken.Encoding(
            name="jaxchat",
            pat_str=covering(self.pattern),
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self.specials,
        )

    @classmethod
    def from_tiktoken(cls, encoding: tiktoken.Encoding) -> Tokenizer:
        """The same tokenizer as tiktoken's. Raises TokenizerError as `from_ranks`."""
        state: Any = encoding
        pattern = uncovered(state._pat_str)
        return cls.from_ranks(state._mergeable_ranks, pattern, state._special_tokens)

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]
    ) -> Tokenizer:
        """A tokenizer of mergeable tokens with their ranks, as tiktoken is given them.

        Raises TokenizerError when the ranks are not whole numbers from 0 on, each once, or the
        special tokens are not ours (those of tools may be missing), after them and in our order.
        """
        tokens = sorted(ranks, key=lambda token: ranks[token])
        if [ranks[token] for token in tokens] != list(range(len(tokens))):
            raise TokenizerError("the ranks of the tokens are not 0, 1, 2 and so on, each once.")
        tools = has_tools(special_tokens)
        names = SPECIAL_TOKENS if tools else CHAT_TOKENS
        ours = {name: len(tokens) + i for i, name in enumerate(names)}
        if dict(special_tokens) != ours:
            differs = sorted({*special_tokens} ^ {*ours}) or ["their numbers or order"]
            raise TokenizerError(
                f"the special tokens are not the {len(ours)} of jaxchat and nanochat, after all "
                f"others and in their order (what differs: {', '.join(map(repr, differs[:5]))})."
            )
        return cls(tokens, pattern, tools=tools)

    @classmethod
    def from_huggingface(cls, path: Path) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`, where it gives the ids that ours would give.

        Raises TokenizerError for all others, saying what stands in the way.
        """
        return cls.from_ranks(*read_huggingface(path))

    def to_huggingface(self, folder: Path, context: int = 0, *, begins: bool = False) -> None:
        """Writes the files from which `tokenizers` and transformers make this tokenizer.

        `context` and `begins` are those of `write_huggingface`. What they do differently with
        special tokens is said in `jaxchat.tokenizer.huggingface`.
        Raises TokenizerError when the folder holds a tokenizer of ours, or when the pattern has no
        equal in the regular expressions of `tokenizers`.
        """
        names = tuple(self.specials)
        write_huggingface(self.tokens, self.pattern, folder, context, names=names, begins=begins)

    @cached_property
    def token_bytes(self) -> npt.NDArray[np.int32]:
        """[V] bytes that each token stands for, 0 for special tokens: for bits per byte."""
        lengths = np.zeros(self.vocab_size, np.int32)
        lengths[: len(self.tokens)] = [len(token) for token in self.tokens]
        lengths.flags.writeable = False
        return lengths

    def _ranks_text(self) -> str:
        lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(self.tokens))
        return "".join(lines)

    def _settings(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "vocab_size": self.vocab_size,
            "pattern": self.pattern,
            "special_tokens": self.specials,
            "hash": self.hash,
        }


class TrainingReport(NamedTuple):
    """Counts of what the trainer read, and with `max_words` of what it dropped."""

    texts: int
    bytes: int
    pretokens: int  # every occurrence
    distinct: int  # what was left to merge
    dropped: int  # rare pre-tokens, each as often as it was dropped
    dropped_pretokens: int  # their occurrences


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = SPLIT_PATTERN,
    *,
    tools: bool = True,
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
    rare pairs only. Without `tools` there are no special tokens for their calls and outputs, and
    as many more merges.

    `progress` is called about ten times a second and at the end, with the number of merges done,
    of those that fit. `report` is called once, with the counts.

    Raises TokenizerError for a vocabulary too small for the bytes and special tokens, and a pattern
    that does not compile; TypeError for an item that is not str, ValueError for one with lone
    surrogates.
    """
    specials = len(SPECIAL_TOKENS if tools else CHAT_TOKENS)
    if vocab_size < 256 + specials:
        raise TokenizerError(
            f"vocab_size is {vocab_size}; the 256 bytes and {specials} special "
            f"tokens need at least {256 + specials}."
        )
    try:
        tokens, counts = _bpe.train(
            texts,
            vocab_size - specials,
            pattern,
            progress,
            _threads(threads),
            max_words or 0,
        )
    except _bpe.PatternError as error:
        raise TokenizerError(str(error)) from error
    if report is not None:
        report(TrainingReport(*counts))
    return Tokenizer(tokens, pattern, tools=tools)


def _threads(threads: int | None) -> int:
    """For the crate, where 0 is one thread per core; never more than that."""
    return min(threads or 0, os.cpu_count() or 1)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
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
    if not isinstance(settings.get("special_tokens"), dict):
        raise TokenizerError(f"{SETTINGS_FILE} has no special tokens")
    return settings


def parse_ranks(text: str) -> list[bytes]:
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
