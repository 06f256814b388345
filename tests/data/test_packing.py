"""Packing: nothing is lost, nothing is mixed up, every row begins with BOS."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.data.packing import (
    TextStatistics,
    join,
    pack_conversations,
    pack_text,
    token_dtype,
)

BOS = 0
rows_of = st.integers(2, 24)
pools = st.integers(1, 12)
lengths = st.lists(st.integers(0, 60), max_size=40)

Flat = tuple[np.ndarray, np.ndarray]


def numbered(lengths: Sequence[int]) -> Flat:
    """Documents of BOS and ids that occur nowhere else, so that each id can be traced."""
    documents, following = [], 1
    for length in lengths:
        documents.append([BOS, *range(following, following + length)])
        following += length
    return flat(documents)


def flat(documents: Sequence[Sequence[int]]) -> Flat:
    offsets = np.cumsum([0, *map(len, documents)])
    return np.array([i for ids in documents for i in ids], np.uint32), offsets


def packed(lengths: Sequence[int], row: int, pool: int = 1_000) -> list[list[int]]:
    rows: list[list[int]] = pack_text(*numbered(lengths), row, BOS, pool)[0].tolist()
    return rows


def pieces(rows: list[list[int]]) -> list[list[int]]:
    """What stands between the BOS of rows."""
    found: list[list[int]] = []
    for token in (i for ids in rows for i in ids):
        if token == BOS:
            found.append([])
        else:
            found[-1].append(token)
    return found


@given(lengths, rows_of, pools)
def test_text_rows_are_full_and_begin_with_bos(lengths: list[int], row: int, pool: int) -> None:
    for ids in packed(lengths, row, pool):
        assert len(ids) == row
        assert ids[0] == BOS


@given(lengths, rows_of, pools)
def test_every_token_is_kept_but_those_of_the_last_unfilled_row(
    lengths: list[int], row: int, pool: int
) -> None:
    own = [i for ids in packed(lengths, row, pool) for i in ids if i != BOS]
    assert len(own) == len(set(own)), "a token came twice"
    assert sum(lengths) - len(own) < row


@given(lengths, rows_of, pools)
def test_documents_can_be_put_together_again_from_the_rows(
    lengths: list[int], row: int, pool: int
) -> None:
    owner = np.repeat(np.arange(len(lengths)), lengths)  # of token n + 1
    again: list[list[int]] = [[] for _ in lengths]
    for piece in pieces(packed(lengths, row, pool)):
        if piece:
            assert len(set(owner[np.array(piece) - 1])) == 1, "two documents run into each other"
            again[owner[piece[0] - 1]] += piece
    # What is missing fills no row, and is the end of each document that it is of.
    ids, offsets = numbered(lengths)
    for document, (begin, end) in zip(again, itertools.pairwise(offsets), strict=True):
        assert document == ids[begin + 1 : end].tolist()[: len(document)]


@given(lengths, rows_of, pools)
def test_the_statistics_are_those_of_the_rows(lengths: list[int], row: int, pool: int) -> None:
    rows, reported = pack_text(*numbered(lengths), row, BOS, pool)
    assert reported.documents == sum(length > 0 for length in lengths)
    assert reported.tokens == sum(lengths)
    assert reported.rows == len(rows)
    assert reported.bos == (rows == BOS).sum()
    assert reported.kept == (rows != BOS).sum()
    assert reported.dropped == reported.tokens - reported.kept


@given(lengths, rows_of, pools)
def test_the_same_documents_give_the_same_rows(lengths: list[int], row: int, pool: int) -> None:
    assert packed(lengths, row, pool) == packed(lengths, row, pool)


def test_at_least_99_percent_of_a_corpus_are_kept() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 500).astype(int).tolist()
    _, reported = pack_text(*numbered(lengths), 257, BOS)
    assert reported.share_kept > 0.99
    assert reported.bos < 0.02 * 257 * reported.rows


def test_documents_that_fit_are_not_cut() -> None:
    # with their BOS 7, 5, 3 and 5 ids; taken as they come, the second would be cut
    ids, offsets = numbered([6, 4, 2, 4])
    one, two, three, four = (ids[a:b].tolist() for a, b in itertools.pairwise(offsets))
    assert packed([6, 4, 2, 4], 10) == [one + three, four + two]


def test_documents_longer_than_a_row_do_not_fill_the_pool() -> None:
    # Only the first document is longer than a row. It is cut at once; waiting, it would leave the
    # others, of a row's half, to be cut.
    rows = packed([60, *[9] * 6], 20, pool=3)
    assert [ids.count(BOS) for ids in rows] == [1, 1, 1, 2, 2, 2]


def test_the_shortest_is_cut_where_none_fits() -> None:
    rows = packed([7, 5, 4], 10)
    assert rows[0] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 13]


def test_empty_documents_are_left_out() -> None:
    documents = flat([[BOS], [], [BOS, 1, 2], [BOS]])
    rows, reported = pack_text(*documents, 3, BOS)
    assert rows.tolist() == [[BOS, 1, 2]]
    assert reported == TextStatistics(documents=1, tokens=2, kept=2, bos=1, rows=1)
    assert len(pack_text(*flat([[BOS], [BOS, 1]]), 3, BOS)[0]) == 0, "a lone BOS filled a row"


def test_no_documents_are_no_rows_of_the_right_width() -> None:
    rows, reported = pack_text(*join([]), 5, BOS)
    assert rows.shape == (0, 5)
    assert reported == TextStatistics()


def test_a_row_too_short_for_text_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 1 ids"):
        pack_text(*numbered([1]), 1, BOS)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_have_the_type_of_the_ids(dtype: type) -> None:
    ids, offsets = flat([[BOS, 65_535]])
    rows, _ = pack_text(ids.astype(dtype), offsets, 2, BOS)
    assert rows.dtype == dtype
    assert rows.tolist() == [[BOS, 65_535]]


def test_joined_batches_are_packed_as_one() -> None:
    ids, offsets = numbered([5, 3, 8])
    first = ids[: offsets[2]], offsets[:3]
    second = ids[offsets[2] :], offsets[2:] - offsets[2]
    joined = join([first, second])
    assert joined[0].tolist() == ids.tolist()
    assert joined[1].tolist() == offsets.tolist()


# ----- conversations -----

chats = st.lists(st.lists(st.integers(0, 1), max_size=40).map(lambda mask: [0, *mask]), max_size=30)
PAD = 999


def conversations(masks: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    ids, offsets = numbered([len(mask) - 1 for mask in masks])
    parts = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    return list(zip(parts, masks, strict=True))


def joined(pairs: list[tuple[list[int], list[int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, masks and offsets, as `render_batch` gives them."""
    ids, offsets = flat([ids for ids, _ in pairs])
    return ids, np.array([m for _, mask in pairs for m in mask], np.uint8), offsets


@given(chats, rows_of, pools)
def test_conversations_stay_whole_with_their_masks_or_are_cut_at_the_rows_end(
    masks: list[list[int]], row: int, pool: int
) -> None:
    all_of_them = conversations(masks)
    rows, flags, reported = pack_conversations(*joined(all_of_them), row, PAD, pool)
    assert rows.shape == flags.shape == (reported.rows, row)
    assert (reported.padding, reported.tokens) == ((rows == PAD).sum(), sum(map(len, masks)))
    assert (reported.kept, reported.cut) == (
        (rows != PAD).sum(),
        sum(len(mask) > row for mask in masks),
    )
    left = [(ids[:row], mask[:row]) for ids, mask in all_of_them]
    for ids, mask in zip(rows.tolist(), flags.tolist(), strict=True):
        while ids and ids[0] != PAD:
            match = [(i, m) for i, m in left if ids[: len(i)] == i and mask[: len(i)] == m]
            assert match, f"a row continues with {ids}, {mask}, which begins no conversation"
            longest = max(match)
            left.remove(longest)
            ids, mask = ids[len(longest[0]) :], mask[len(longest[0]) :]
        assert set(ids) <= {PAD}
        assert set(mask) <= {0}
    assert not left, "conversations were lost"


def test_little_of_packed_conversations_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 60, 500)
    pairs = conversations([[1] * int(n) for n in lengths])
    _, _, reported = pack_conversations(*joined(pairs), 129, PAD)
    assert reported.share_padding < 0.02


@pytest.mark.parametrize(("vocab", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_rows_take_two_bytes_a_token_while_the_vocabulary_allows(vocab: int, dtype: type) -> None:
    assert token_dtype(vocab) is dtype


def test_no_conversations_are_no_rows_of_the_right_width() -> None:
    rows, mask, reported = pack_conversations(*joined([]), 5, PAD)
    assert rows.shape == mask.shape == (0, 5)
    assert reported.share_padding == 0
