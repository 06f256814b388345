"""Clients take turns."""

import pytest

from jaxchat.serve.scheduler import FairQueue


def drain(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_clients_take_turns_and_each_keeps_its_order():
    queue = FairQueue(lambda item: item[0])
    for item in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        queue.push(item)
    assert drain(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_one_who_was_just_served_comes_last():
    queue = FairQueue(lambda item: item[0])
    for item in ("a1", "a2", "b1"):
        queue.push(item)
    assert queue.pop() == "a1"
    queue.push("a3")
    queue.push("c1")
    assert drain(queue) == ["b1", "a2", "c1", "a3"]


def test_what_is_removed_does_not_come():
    queue = FairQueue(lambda item: item[0])
    for item in ("a1", "a2", "b1"):
        queue.push(item)
    assert queue.remove("a1")
    assert not queue.remove("a1")
    assert queue.remove("b1")
    assert not queue.remove("z1")
    assert list(queue) == ["a2"]
    assert queue.peek() == "a2"
    assert drain(queue) == ["a2"]
    with pytest.raises(IndexError):
        queue.pop()
