from collections.abc import Callable, Iterable

def train(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str,
    progress: Callable[[int], object] | None = None,
    threads: int = 0,
) -> list[bytes]:
    """Learns a byte-level BPE vocabulary: the bytes of every token, in rank order.

    The first 256 tokens are the single bytes; each later one joins the pair of adjacent tokens
    that is most frequent inside pre-tokens (the matches of `pattern`, in the syntax of the Rust
    crate fancy-regex). Of equally frequent pairs the smallest (left rank, right rank) is taken.
    The result depends on the texts alone, not on `threads` (0: one per core).

    The list is shorter than `vocab_size` only when the texts run out of pairs. Texts are read in
    chunks, never held all at once. `progress` is told the number of merges done about ten times a
    second, and at the end; what it raises stops the training.

    Raises TypeError for an item that is not str; ValueError for a vocabulary under 256, a pattern
    that does not compile, and text with lone surrogates.
    """
