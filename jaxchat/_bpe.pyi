from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class PatternError(ValueError):
    """A pattern that does not compile."""

def train(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str,
    progress: Callable[[int], object] | None = None,
    threads: int = 0,
    max_words: int = 0,
) -> tuple[list[bytes], tuple[int, int, int, int, int, int]]:
    """Learns a byte-level BPE vocabulary: the bytes of every token in rank order, and the counts.

    The first 256 tokens are the single bytes; each later one joins the pair of adjacent tokens
    that is most frequent inside pre-tokens (the matches of `pattern`, in the syntax of the Rust
    crate fancy-regex). Of equally frequent pairs the smallest (left rank, right rank) is taken:
    the merges of rustbpe 0.1.0. The result depends on the texts alone, not on `threads` (0: one
    per core).

    The list is shorter than `vocab_size` only when the texts run out of pairs. Texts are read in
    chunks of 32 MB, never held all at once. When more than `max_words` distinct pre-tokens (0: no
    limit) are held after a chunk, the rarest are dropped until at most half as many are left; words
    of one count go together. `progress` is called about ten times a second, and at the end, with
    the number of merges done; what it raises stops the training.

    The counts are those of `jaxchat.tokenizer.TrainingReport`.

    Raises TypeError for an item that is not str; ValueError for a vocabulary under 256 and text
    with lone surrogates; PatternError.
    """

class Encoder:
    """Turns text into token ids; safe to share between threads.

    Ids are ranks. Each match of the pattern that is a token is that token; any other is cut into
    bytes, and the neighbours that join to the lowest rank are joined until none do, as in tiktoken.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str) -> None:
        """Raises ValueError when a byte is no token or a token is empty or there twice."""

    def encode(self, text: str) -> list[int]:
        """The ids of one text. Raises ValueError for lone surrogates."""

    def encode_batch(
        self,
        texts: Iterable[str],
        before: Sequence[int],
        after: Sequence[int],
        wide: bool,
        threads: int,
    ) -> tuple[npt.NDArray[np.uint16 | np.uint32], npt.NDArray[np.int64]]:
        """All ids, each text's between `before` and `after`, and their offsets [texts + 1].

        uint32 when `wide`, else uint16, which must hold all ids. `threads` 0: one per core.
        """

def scanned_patterns() -> list[str]:
    """The spellings of patterns that have a hand-written scanner instead of a regex engine."""

def bfloat16_kernels() -> dict[str, Any]:
    """PyCapsules of XLA's handlers of `model.kernels.native`, by the names of their targets; none
    where the processor has no AVX-512 BF16.
    """

def int8_matmul() -> Any:
    """A PyCapsule of XLA's handler of products with kernels of 8 bits (`model.kernels.int8`)."""

def cached_attention() -> Any:
    """A PyCapsule of XLA's handler of `model.kernels.cached`; None on a processor without FMA."""
