"""Packing token sequences into rows of a fixed length (pure; layer 1).

Every row begins with BOS. Text is packed best-fit and its documents are split rather than thrown
away; conversations stay whole, are padded, and are cut only when longer than a row.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def pack_text(
    documents: Iterable[Sequence[int]], row: int, bos: int, pool: int = 256
) -> Iterator[list[int]]:
    """Packs documents into full rows of `row` ids.

    Each document is [bos, ...]. Of up to `pool` waiting documents the longest that fits is taken;
    when none fits, the shortest is split and its rest waits as a document of its own, with a BOS.
    What is left at the end and fills no row is dropped: less than one row.
    """
    if row < 2:
        raise ValueError(f"rows of {row} ids hold no text; at least 2 are needed.")
    waiting: list[tuple[int, int]] = []  # (length, serial), sorted
    bodies: dict[int, list[int]] = {}
    serial = 0
    current: list[int] = []

    def push(ids: list[int]) -> None:
        nonlocal serial
        bisect.insort(waiting, (len(ids), serial))
        bodies[serial] = ids
        serial += 1

    def fill() -> None:
        space = row - len(current)
        place = bisect.bisect_right(waiting, (space, math.inf)) - 1
        if place >= 0:
            current.extend(bodies.pop(waiting.pop(place)[1]))
            return
        ids = bodies.pop(waiting.pop(0)[1])
        current.extend(ids[:space])
        push([bos, *ids[space:]])

    for document in documents:
        ids = list(document)
        if len(ids) < 2:
            continue
        push(ids)
        while len(waiting) >= pool:
            fill()
            if len(current) == row:
                yield current
                current = []
    while waiting:
        fill()
        if len(current) == row:
            yield current
            current = []


def pack_conversations(
    conversations: Iterable[tuple[Sequence[int], Sequence[int]]],
    row: int,
    pad: int,
    pool: int = 64,
) -> Iterator[tuple[list[int], list[int]]]:
    """Packs (ids, mask) pairs whole into rows of `row` ids, padded with `pad` and mask 0.

    Of `pool` waiting conversations the longest that fits comes next, so little is padded; one
    longer than a row is cut at the row's end.
    """
    waiting: list[tuple[int, int]] = []
    bodies: dict[int, tuple[list[int], list[int]]] = {}
    ids: list[int] = []
    mask: list[int] = []

    def flush() -> tuple[list[int], list[int]]:
        nonlocal ids, mask
        space = row - len(ids)
        full = ids + [pad] * space, mask + [0] * space
        ids, mask = [], []
        return full

    def take() -> Iterator[tuple[list[int], list[int]]]:
        place = bisect.bisect_right(waiting, (row - len(ids), math.inf)) - 1
        if place < 0:
            yield flush()
            return
        body = bodies.pop(waiting.pop(place)[1])
        ids.extend(body[0])
        mask.extend(body[1])

    for serial, (tokens, flags) in enumerate(conversations):
        if len(tokens) != len(flags):
            raise ValueError(f"conversation {serial} has {len(tokens)} ids, {len(flags)} flags.")
        bodies[serial] = list(tokens[:row]), list(flags[:row])
        bisect.insort(waiting, (min(len(tokens), row), serial))
        while len(waiting) >= pool:
            yield from take()
    while waiting:
        yield from take()
    if ids:
        yield flush()


def to_array(rows: Iterable[Sequence[int]], row: int, vocab_size: int) -> np.ndarray:
    """Rows as one [N, row] array of uint16, or uint32 for vocabularies beyond 65,536."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    flat = np.fromiter((token for ids in rows for token in ids), dtype=dtype)
    return flat.reshape(-1, row)
