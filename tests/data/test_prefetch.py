"""Batches made ahead come in order, stop when asked, and pass errors on."""

import threading

import pytest

from jaxchat.data.loader import prefetched


def test_batches_come_in_order_from_any_step() -> None:
    with prefetched(lambda step: step * 10, range(7, 12)) as batches:
        assert list(batches) == [70, 80, 90, 100, 110]


def test_the_next_batches_are_made_while_one_is_used_but_not_more() -> None:
    made: list[int] = []
    third = threading.Event()

    def batch_of(step: int) -> int:
        made.append(step)
        if step == 3:
            third.set()
        return step

    with prefetched(batch_of, range(100), ahead=2) as batches:
        assert next(batches) == 0
        assert third.wait(10), "nothing is made ahead"
        assert not threading.Event().wait(0.5)
        assert made == [0, 1, 2, 3], "one in use, two ready, one waiting to be put there"


def test_an_error_comes_with_its_batch() -> None:
    def batch_of(step: int) -> int:
        if step == 2:
            raise ValueError("shard 12 is damaged")
        return step

    with prefetched(batch_of, range(5)) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(ValueError, match="shard 12 is damaged"):
            next(batches)


def test_who_has_to_stop_does_not_wait_for_data() -> None:
    release = threading.Event()

    def batch_of(step: int) -> int:
        if step == 1:
            release.wait(60)
        return step

    stop = False
    with prefetched(batch_of, range(5), give_up=lambda: stop) as batches:
        assert next(batches) == 0
        stop = True
        assert list(batches) == []
        release.set()


def test_batches_that_are_ready_are_used_before_giving_up() -> None:
    with prefetched(lambda step: step, range(3), give_up=lambda: True) as batches:
        assert list(batches) == [0, 1, 2]


def test_the_thread_ends_with_the_block() -> None:
    before = threading.active_count()
    with prefetched(lambda step: step, range(1000)) as batches:
        next(batches)
    assert threading.active_count() == before
