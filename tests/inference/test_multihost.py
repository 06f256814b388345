"""Engines of several processes as one: the processes are threads, the engines answer at once."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from jaxchat.inference.replicas import MultiHostEngine
from jaxchat.inference.request import Completion, EngineError, Request
from jaxchat.parallel.process_group import ALONE


@dataclass
class Local:
    """Answers with the request's first token and numbers that JSON could spoil."""

    served: list[Request] = field(default_factory=list)

    def check(self, request):
        if request.max_tokens > 99:
            raise EngineError("it is too long")

    def generate(self, requests, progress):
        for done, request in enumerate(requests):
            self.served.append(request)
            progress(done + 1)
        token = [request.tokens[0] for request in requests]
        alternatives = (((5, -0.1), (6, -1e-17)),)
        return [[Completion((t,), (1,), (-t / 3,), "stop", alternatives)] * 2 for t in token]


class Meeting:
    """The groups of all processes; what is gathered goes through JSON, as between processes."""

    def __init__(self, size):
        self.given, self.barrier = [""] * size, threading.Barrier(size, timeout=60)
        self.groups = [Place(self, index, size) for index in range(size)]


@dataclass
class Place:
    """The group as process `index` sees it."""

    meeting: Meeting
    index: int
    size: int

    def gather(self, value):
        self.meeting.given[self.index] = json.dumps(value)
        self.meeting.barrier.wait()
        return [json.loads(text) for text in self.meeting.given]


def requests_of(count, **settings):
    return [Request((number,), **{"max_tokens": 9, **settings}) for number in range(count)]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("watched", [True, False])
def test_every_process_gets_what_one_engine_gives_for_a_share_of_the_work(size, count, watched):
    requests, engines, seen = requests_of(count), [Local() for _ in range(size)], []

    def process(group, local):
        engine = MultiHostEngine.over(group, local)
        return engine.generate(requests, seen.append) if watched else engine.generate(requests)

    with ThreadPoolExecutor(size) as pool:
        found = [*pool.map(process, Meeting(size).groups, engines)]
    assert found == [Local().generate(requests, lambda done: None)] * size
    served = [request for local in engines for request in local.served]
    assert sorted(request.tokens for request in served) == [r.tokens for r in requests]
    assert max(len(local.served) for local in engines) == -(-count // size)
    assert max(seen, default=0) == (count if watched else 0), "progress is in requests of all"


def test_a_request_that_cannot_be_served_is_refused_by_all_before_any_is():
    for group in Meeting(2).groups:
        local = Local()
        engine = MultiHostEngine.over(group, local)
        with pytest.raises(EngineError, match="too long"):
            engine.generate([*requests_of(2), *requests_of(1, max_tokens=100)])
        assert not local.served


def test_one_process_has_its_engine_itself():
    local = Local()
    assert MultiHostEngine.over(ALONE, local) is local
