"""Packing token sequences into rows of a fixed length.

Every row begins with BOS. Text is packed best-fit and its documents are split rather than thrown
away; conversations stay whole, are padded, and are cut only when longer than a row.

Sequences come as one flat array and the offsets at which each begins, as the tokenizer gives them.
What goes where is planned from the lengths alone, so that the rows are allocated once; Python sees
pieces of documents, never tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from operator import add

import numpy as np
import numpy.typing as npt

from jaxchat.tokenizer.chat_format import Mask

VERSION = 2  # of the rules below: raise it when the same input gives other rows
TEXT_POOL = 1_000  # documents that wait to be chosen from
CHAT_POOL = 64

Ids = npt.NDArray[np.uint16 | np.uint32]
Offsets = npt.NDArray[np.int64]  # [documents + 1]

_SERIAL_BITS = 32  # a waiting sequence is the integer length << 32 | serial, so that they sort
_SERIAL = (1 << _SERIAL_BITS) - 1


@dataclass(frozen=True)
class TextStatistics:
    """Counts of packing documents; BOS is counted apart from the documents' own tokens."""

    documents: int = 0  # those with any token of their own
    tokens: int = 0  # that they have
    kept: int = 0  # tokens in rows
    bos: int = 0  # in rows: one for each piece of a document
    rows: int = 0

    @property
    def dropped(self) -> int:
        """Tokens in no row."""
        return self.tokens - self.kept

    @property
    def share_kept(self) -> float:
        """Of the documents' tokens."""
        return self.kept / max(self.tokens, 1)

    def __add__(self, other: TextStatistics) -> TextStatistics:
        return TextStatistics(*map(add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents of {self.tokens:,} tokens; {self.share_kept:.3%} kept "
            f"in {self.rows:,} rows, {self.dropped:,} dropped, {self.bos:,} BOS added"
        )


@dataclass(frozen=True)
class ChatStatistics:
    """Counts of packing conversations."""

    conversations: int
    tokens: int  # that they have
    kept: int  # tokens in rows
    cut: int  # conversations longer than a row
    padding: int  # places in rows that hold nothing
    rows: int

    @property
    def share_padding(self) -> float:
        """Of all places in rows."""
        return self.padding / max(self.padding + self.kept, 1)


def pack_text(
    ids: Ids, offsets: Offsets, row: int, bos: int, pool: int = TEXT_POOL
) -> tuple[Ids, TextStatistics]:
    """Packs documents, each [bos, ...], into full rows [N, row] of the type of `ids`.

    An empty row is given the longest of up to `pool` waiting documents, then the longest that fits
    as long as one does; then the shortest is split to fill it. What does not go into a row waits
    as a document of its own, with a BOS. What is left at the end and fills no row is dropped: less
    than one row.
    """
    if row < 2:
        raise ValueError(f"rows of {row} ids hold no text; at least 2 are needed.")
    starts, sizes = _plan_text(offsets, row, max(pool, 1))
    count = (sum(sizes) + len(sizes)) // row
    rows = np.full(count * row, bos, ids.dtype)
    place = 0
    for start, size in zip(starts, sizes, strict=True):
        rows[place + 1 : place + 1 + size] = ids[start : start + size]
        place += 1 + size
    own = np.diff(offsets) - 1
    statistics = TextStatistics(
        documents=int((own > 0).sum()),
        tokens=int(own[own > 0].sum()),
        kept=sum(sizes),
        bos=len(sizes),
        rows=count,
    )
    return rows.reshape(count, row), statistics


def _plan_text(offsets: Offsets, row: int, pool: int) -> tuple[list[int], list[int]]:
    """Where each piece begins in the ids, and its size without BOS, in the order of the rows."""
    begins, ends = (offsets[:-1] + 1).tolist(), offsets[1:].tolist()
    arriving = (n for n, (begin, end) in enumerate(zip(begins, ends, strict=True)) if begin < end)
    waiting: list[int] = []
    starts: list[int] = []
    sizes: list[int] = []
    space, whole = row, 0  # whole: pieces in rows that are full
    while True:
        while len(waiting) < pool and (serial := next(arriving, None)) is not None:
            size = 1 + ends[serial] - begins[serial]
            bisect.insort(waiting, size << _SERIAL_BITS | serial)
        if not waiting:
            return starts[:whole], sizes[:whole]
        fits = bisect.bisect_left(waiting, (space + 1) << _SERIAL_BITS) - 1
        chosen = waiting.pop(-1 if space == row else max(fits, 0))
        serial, left = chosen & _SERIAL, chosen >> _SERIAL_BITS
        used = min(left, space)
        starts.append(begins[serial])
        sizes.append(used - 1)
        if used < left:
            begins[serial] += used - 1
            bisect.insort(waiting, (left - used + 1) << _SERIAL_BITS | serial)
        space -= used
        if not space:
            space, whole = row, len(starts)


def pack_conversations(
    ids: Ids,
    mask: Mask,
    offsets: Offsets,
    row: int,
    pad: int,
    pool: int = CHAT_POOL,
) -> tuple[Ids, Mask, ChatStatistics]:
    """Packs conversations whole into rows [N, row] of ids, padded with `pad`, and of masks, with 0.

    Of `pool` waiting conversations the longest that fits comes next, so little is padded; one
    longer than a row is cut at the row's end.
    """
    lengths = np.diff(offsets)
    places = _plan_conversations(np.minimum(lengths, row).tolist(), row, max(pool, 1))
    count = 1 + max((place // row for _, place, _ in places), default=-1)
    rows = np.full(count * row, pad, ids.dtype)
    masks = np.zeros(count * row, mask.dtype)
    for serial, place, size in places:
        start = int(offsets[serial])
        rows[place : place + size] = ids[start : start + size]
        masks[place : place + size] = mask[start : start + size]
    kept = sum(size for *_, size in places)
    statistics = ChatStatistics(
        conversations=len(lengths),
        tokens=int(lengths.sum()),
        kept=kept,
        cut=int((lengths > row).sum()),
        padding=count * row - kept,
        rows=count,
    )
    return rows.reshape(count, row), masks.reshape(count, row), statistics


def _plan_conversations(sizes: list[int], row: int, pool: int) -> list[tuple[int, int, int]]:
    """(serial, place in the rows, size) of each conversation; no size is over `row`."""
    arriving = iter(enumerate(sizes))
    waiting: list[int] = []
    places: list[tuple[int, int, int]] = []
    place, space = 0, row
    while True:
        while len(waiting) < pool and (new := next(arriving, None)) is not None:
            bisect.insort(waiting, new[1] << _SERIAL_BITS | new[0])
        if not waiting:
            return places
        fits = bisect.bisect_left(waiting, (space + 1) << _SERIAL_BITS) - 1
        if fits < 0:
            place, space = place + space, row
            continue
        chosen = waiting.pop(fits)
        size = chosen >> _SERIAL_BITS
        places.append((chosen & _SERIAL, place, size))
        place, space = place + size, space - size


def draw_groups(count: int, size: int, seed: int) -> npt.NDArray[np.int64]:
    """[count] the group of each conversation: groups of `size`, drawn at random, the last smaller.

    At random, for that is what a shuffled mixture gives. Neighbours would not do: `Mixture` spreads
    its data sets evenly, so that short conversations rarely meet, and packed rows bring those of
    like length together; short answers would get another weight (figures in docs/parity.md).
    """
    # three numbers: nothing else is shuffled with such a seed
    order = np.random.default_rng([seed, 0, size]).permutation(count)
    groups = np.empty(count, np.int64)
    groups[order] = np.arange(count) // size
    return groups


def learned_in_row(mask: Mask, offsets: Offsets, row: int) -> npt.NDArray[np.int64]:
    """[conversations] how many tokens of each are learned among those that a row of `row` keeps."""
    begins, ends = offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + row)
    flags = np.append(mask > 0, False)  # so that every end is a place
    bounds = np.stack([begins, ends], axis=1).reshape(-1)
    learned: npt.NDArray[np.int64] = np.add.reduceat(flags, bounds, dtype=np.int64)[::2]
    return learned


def group_weights(
    mask: Mask, offsets: Offsets, row: int, groups: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """[conversations] what each one's tokens weigh where the loss is a mean of groups' means.

    The mean of a group is over the learned tokens of its conversations that a row of `row` ids
    keeps; groups count by their conversations, and not at all where nothing is learned. With the
    factor that is common to all, learned tokens weigh 1 on average.
    """
    learned = learned_in_row(mask, offsets, row)
    tokens, share = np.bincount(groups, learned), np.bincount(groups)
    share[tokens == 0] = 0
    scale = tokens.sum() / max(share.sum(), 1)
    weights: npt.NDArray[np.float64] = scale * share / np.maximum(tokens, 1)
    return weights[groups].astype(np.float32)


def join(batches: Iterable[tuple[Ids, Offsets]]) -> tuple[Ids, Offsets]:
    """Batches of documents, as `Tokenizer.encode_batch` gives them, as one."""
    parts: list[Ids] = []
    offsets: list[Offsets] = [np.zeros(1, np.int64)]
    total = 0
    for ids, begins in batches:
        parts.append(ids)
        offsets.append(begins[1:] + total)
        total += len(ids)
    # no batch at all: any type will do
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint16)), np.concatenate(offsets)


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """uint16, or uint32 for vocabularies beyond 65,536."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
