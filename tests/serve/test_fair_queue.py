"""Clients take turns."""

import pytest

from jaxchat.serve.fair_queue import FairQueue


class Pending(str):
    """A request whose client is its first letter."""

    @property
    def client(self):
        return self[0]


def drain(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_clients_take_turns_and_each_keeps_its_order():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.push(Pending(item))
    assert drain(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_one_who_was_just_served_comes_last():
    queue = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.push(Pending(item))
    assert queue.pop() == "a1"
    queue.push(Pending("a3"))
    queue.push(Pending("c1"))
    assert drain(queue) == ["b1", "a2", "c1", "a3"]


def test_what_is_removed_does_not_come():
    queue = FairQueue()
    for item in ("a1", "a2", "b1"):
        queue.push(Pending(item))
    assert queue.remove(Pending("a1"))
    assert not queue.remove(Pending("a1"))
    assert queue.remove(Pending("b1"))
    assert not queue.remove(Pending("z1"))
    assert list(queue) == ["a2"]
    assert queue.peek() == "a2"
    assert drain(queue) == ["a2"]
    with pytest.raises(IndexError):
        queue.pop()
