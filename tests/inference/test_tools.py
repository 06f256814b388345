"""Slow tools: only the row that called waits, and when the output comes changes nothing."""

import dataclasses
import itertools
import random
import threading
import time

import jax
import numpy as np
import pytest

from jaxchat.inference.engine import Engine, Request
from jaxchat.tools.executor import TOOL_FAILED, ToolExecutor


@pytest.fixture(scope="module")
def make_engine(params, config, tokenizer):
    def make(tools, **settings):
        settings = {"slots": 8, "steps_per_dispatch": 4, "max_len": 128, **settings}
        return Engine(params, config, tokenizer, tools=tools, **settings)

    return make


def random_requests(count=20, max_tokens=40):
    """Of which the fixture's model calls tools in some."""
    rng = np.random.default_rng(0)
    return [
        Request(tuple(rng.integers(0, 256, rng.integers(1, 60)).tolist()), max_tokens=max_tokens)
        for _ in range(count)
    ]


def reverse(code):
    return code[::-1]


def test_a_tool_that_dawdles_gives_the_same_as_a_quick_one(make_engine):
    dice = random.Random(0)

    def slow(code):
        time.sleep(dice.choice([0, 0.001, 0.05]))
        return reverse(code)

    class Quick:
        def __call__(self, code):
            raise AssertionError("this call needed no thread")

        def quick(self, code):
            return reverse(code)

    want = make_engine(Quick()).generate(random_requests())
    assert any(0 in completion.mask for (completion,) in want)
    assert make_engine(slow).generate(random_requests()) == want


@pytest.mark.parametrize("said", ["", "a\nb", "\u20ac 7", "<|assistant_end|>"])
def test_what_a_tool_says_is_put_in_as_it_stands(make_engine, tokenizer, said):
    """Also where it says nothing, or the name of a special token: that is text here."""
    completions = make_engine(lambda code: said).generate(random_requests())
    start, end = map(tokenizer.special, ("<|output_start|>", "<|output_end|>"))
    want = [start, *tokenizer.encode(said), end]
    outputs = [
        [token for _, token in run]
        for (completion,) in completions
        for sampled, run in itertools.groupby(
            zip(completion.mask, completion.tokens, strict=True), lambda pair: pair[0]
        )
        if not sampled
    ]
    assert want in outputs
    assert all(output == want[: len(output)] for output in outputs)  # cut at the limit


def test_what_others_get_does_not_depend_on_a_tools_output(make_engine):
    requests = random_requests()
    long, short = (
        make_engine(tool).generate(requests) for tool in (lambda code: "1 + 1, " * 9, reverse)
    )
    calls = [0 in completion.mask for (completion,) in short]
    assert any(calls)
    assert not all(calls)
    for called, one, other in zip(calls, long, short, strict=True):
        assert called or one == other


def test_others_continue_while_one_waits_for_its_tool(make_engine):
    answer = threading.Event()

    def blocked(code):
        assert answer.wait(60)
        return "7"

    engine = make_engine(blocked)
    jobs = [engine.submit(request) for request in random_requests()]
    while sum(job.done for job in jobs) < len(jobs) - 8:  # at most all slots wait
        engine.step()
        if all(row is None or row.waits for row in engine._rows):
            break
    waiting = [row for row in engine._rows if row is not None and row.waits]
    assert waiting
    assert any(job.done for job in jobs), "the fixture's model should not always call a tool"
    tokens = [list(row.tokens) for row in waiting]
    for _ in range(3):
        engine.step()
    assert [row.tokens for row in waiting] == tokens
    answer.set()
    while engine.step():
        pass
    assert all(job.done for job in jobs)


def test_a_late_tool_answers_error_and_so_does_one_that_says_no_text(make_engine):
    never = threading.Event()

    def broken(code):
        raise RuntimeError

    want = make_engine(broken).generate(random_requests())
    assert any(0 in completion.mask for (completion,) in want)
    late = make_engine(lambda code: str(never.wait(60)), tool_timeout=0.02)
    assert late.generate(random_requests()) == want
    never.set()
    assert make_engine(lambda code: 7).generate(random_requests()) == want
    assert make_engine(lambda code: "\ud800").generate(random_requests()) == want


def test_a_cancelled_request_that_waits_for_a_tool_frees_its_slot(make_engine):
    answer = threading.Event()
    engine = make_engine(lambda code: str(answer.wait(60)), slots=1)
    calling = next(
        request
        for request, (completion,) in zip(
            random_requests(), make_engine(reverse).generate(random_requests()), strict=True
        )
        if 0 in completion.mask
    )
    job = engine.submit(calling)
    while not job.rows[0].waits:
        engine.step()
    engine.cancel(job)
    assert not engine.step()
    short = dataclasses.replace(calling, max_tokens=2)
    assert engine.generate([short])
    answer.set()


def test_at_most_n_calls_run_at_once_and_their_time_counts_from_their_beginning():
    running, most, lock = 0, 0, threading.Lock()

    def tool(code):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return code

    calls = ToolExecutor(tool, timeout=10.0, at_once=2)
    started = [calls.start(str(number)) for number in range(9)]
    dropped = started.pop()
    calls.drop(dropped)
    while any(call.output is None for call in started):
        calls.wait(1.0)
        calls.poll()
    assert [call.output for call in started] == list("01234567")
    assert most == 2
    assert dropped.output is None


def test_a_call_that_is_late_leaves_room_for_the_next():
    never = threading.Event()
    calls = ToolExecutor(lambda code: str(never.wait(60)), timeout=0.02, at_once=1)
    first, second = calls.start("a"), calls.start("b")
    while second.output is None:
        calls.wait(0.01)
        calls.poll()
    assert first.output == second.output == TOOL_FAILED
    never.set()


def test_a_devices_error_leaves_an_empty_engine_that_works(make_engine):
    engine = make_engine(reverse)
    request = random_requests(1)[0]
    want = engine.generate([request])
    job = engine.submit(request)
    engine.step()
    later = [engine.submit(request) for _ in range(20)]
    for array in jax.tree.leaves(engine._cache):
        array.delete()  # as a dispatch that failed leaves it
    with pytest.raises((RuntimeError, ValueError)):
        engine.step()
    assert not job.done
    assert engine._rows == [None] * 8
    while engine.step():
        pass
    served = [each.rows[0].completion for each in later if each.done]
    assert len(served) == 13, "all that were queued but the seven whose slots were being filled"
    assert set(served) == {want[0][0]}
    assert engine.generate([request]) == want
