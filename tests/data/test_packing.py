"""Packing: nothing is lost, nothing is mixed up, every row begins with BOS."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.data.packing import pack_conversations, pack_text, to_array

BOS = 0
rows_of = st.integers(2, 24)
pools = st.integers(1, 12)
lengths = st.lists(st.integers(0, 60), max_size=40)


def numbered(lengths: Sequence[int]) -> list[list[int]]:
    """Documents of BOS and ids that occur nowhere else, so that each id can be traced."""
    documents, following = [], 1
    for length in lengths:
        documents.append([BOS, *range(following, following + length)])
        following += length
    return documents


@given(lengths, rows_of, pools)
def test_text_rows_are_full_and_begin_with_bos(lengths: list[int], row: int, pool: int) -> None:
    for ids in pack_text(numbered(lengths), row, BOS, pool):
        assert len(ids) == row
        assert ids[0] == BOS


@given(lengths, rows_of, pools)
def test_every_token_is_kept_but_those_of_the_last_unfilled_row(
    lengths: list[int], row: int, pool: int
) -> None:
    packed = [i for ids in pack_text(numbered(lengths), row, BOS, pool) for i in ids if i != BOS]
    assert len(packed) == len(set(packed)), "a token came twice"
    assert sum(lengths) - len(packed) < row


@given(lengths, rows_of, pools)
def test_the_order_within_a_document_is_kept(lengths: list[int], row: int, pool: int) -> None:
    rows = list(pack_text(numbered(lengths), row, BOS, pool))
    place = {token: index for index, token in enumerate(i for ids in rows for i in ids)}
    for document in numbered(lengths):
        places = [place[token] for token in document[1:] if token in place]
        assert places == sorted(places)


@given(lengths, rows_of, pools)
def test_pieces_are_separated_by_bos(lengths: list[int], row: int, pool: int) -> None:
    following = {a: b for doc in numbered(lengths) for a, b in itertools.pairwise(doc)}
    for ids in pack_text(numbered(lengths), row, BOS, pool):
        for left, right in itertools.pairwise(ids):
            if left != BOS and right != BOS:
                assert following.get(left) == right, "two documents run into each other"


def test_at_least_99_percent_of_a_corpus_are_kept() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 1.5, 500).astype(int).tolist()
    rows = list(pack_text(numbered(lengths), 257, BOS))
    kept = sum(token != BOS for ids in rows for token in ids)
    assert kept / sum(lengths) > 0.99
    assert sum(token == BOS for ids in rows for token in ids) < 0.02 * 257 * len(rows)


def test_documents_that_fit_are_not_cut() -> None:
    # with their BOS 7, 5, 3 and 5 ids; taken as they come, the second would be cut
    documents = numbered([6, 4, 2, 4])
    rows = list(pack_text(documents, 10, BOS))
    assert rows == [documents[0] + documents[2], documents[3] + documents[1]]


def test_empty_documents_are_left_out() -> None:
    assert list(pack_text([[BOS], [], [BOS, 1, 2], [BOS]], 3, BOS)) == [[BOS, 1, 2]]
    assert list(pack_text([[BOS], [BOS, 1]], 3, BOS)) == [], "a lone BOS filled a row"


def test_a_row_too_short_for_text_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 1 ids"):
        list(pack_text([[BOS, 1]], 1, BOS))


Chats = list[tuple[list[int], list[int]]]
chats = st.lists(st.lists(st.integers(0, 1), max_size=40).map(lambda mask: [0, *mask]), max_size=30)
PAD = 999


def conversations(masks: list[list[int]]) -> Chats:
    ids = numbered([len(mask) - 1 for mask in masks])
    return list(zip(ids, masks, strict=True))


@given(chats, rows_of, pools)
def test_conversations_stay_whole_with_their_masks_or_are_cut_at_the_rows_end(
    masks: list[list[int]], row: int, pool: int
) -> None:
    packed = list(pack_conversations(conversations(masks), row, PAD, pool))
    assert all(len(ids) == len(mask) == row for ids, mask in packed)
    left = [(ids[:row], mask[:row]) for ids, mask in conversations(masks)]
    for ids, mask in packed:
        while ids and ids[0] != PAD:
            match = [(i, m) for i, m in left if ids[: len(i)] == i and mask[: len(i)] == m]
            assert match, f"a row goes on with {ids}, {mask}, which begins no conversation"
            longest = max(match)
            left.remove(longest)
            ids, mask = ids[len(longest[0]) :], mask[len(longest[0]) :]
        assert set(ids) <= {PAD}
        assert set(mask) <= {0}
    assert not left, "conversations were lost"


def test_little_of_packed_conversations_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 60, 500)
    packed = list(pack_conversations(conversations([[1] * int(n) for n in lengths]), 129, PAD))
    padding = sum(ids.count(PAD) for ids, _ in packed)
    assert padding < 0.02 * 129 * len(packed)


def test_a_conversation_whose_mask_has_another_length_is_named() -> None:
    with pytest.raises(ValueError, match="conversation 1 has 2 ids, 3 flags"):
        list(pack_conversations([([0, 1], [0, 1]), ([0, 1], [0, 1, 1])], 8, PAD))


@pytest.mark.parametrize(("vocab", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_rows_take_two_bytes_a_token_while_the_vocabulary_allows(vocab: int, dtype: type) -> None:
    array = to_array([[0, 65_535], [1, 2]], 2, vocab)
    assert array.dtype == dtype
    assert array.tolist() == [[0, 65_535], [1, 2]]


def test_no_rows_are_an_empty_array_of_the_rows_width() -> None:
    assert to_array([], 5, 300).shape == (0, 5)
