"""Byte-level BPE said as plainly as it can be, to check the fast one against.

Splits with the `regex` module, counts everything again for every merge, and shares no code with
the crate or with tiktoken.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import regex


def split(text: str, pattern: str) -> list[bytes]:
    return [piece.encode() for piece in regex.findall(pattern, text)]


def merge(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged: list[int] = []
    for token in word:
        merged.append(token)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [new]
    return merged


def train(
    texts: Iterable[str], vocab_size: int, pattern: str
) -> tuple[list[bytes], list[list[int]]]:
    """Tokens by rank, and the words of the texts as the trainer leaves them.

    The most frequent pair first; of equally frequent ones the smallest (left rank, right rank).
    """
    tokens = [bytes([byte]) for byte in range(256)]
    pieces = [piece for text in texts for piece in split(text, pattern)]
    words = {piece: list(piece) for piece in pieces}
    times = Counter(pieces)
    while len(tokens) < vocab_size:
        counts: Counter[tuple[int, int]] = Counter()
        for piece, word in words.items():
            for pair in pairwise(word):
                counts[pair] += times[piece]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = {piece: merge(word, best, len(tokens)) for piece, word in words.items()}
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens, [words[piece] for piece in pieces]


def encode(text: str, tokens: list[bytes], pattern: str) -> list[int]:
    """Joins, in each piece, the neighbours that make the token of lowest rank, until none do."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    ids: list[int] = []
    for piece in split(text, pattern):
        parts = [bytes([byte]) for byte in piece]
        while True:
            joined = [a + b for a, b in pairwise(parts)]
            found = [(ranks[join], i) for i, join in enumerate(joined) if join in ranks]
            if not found:
                break
            _, i = min(found)
            parts[i : i + 2] = [joined[i]]
        ids += [ranks[part] for part in parts]
    return ids
