"""Tools: what they are asked, what they may answer, and errors around them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxchat.inference.engine import Engine, Request
from jaxchat.tokenizer.chat_format import parse_completion


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


def broken(code):
    raise RuntimeError(code)


@pytest.mark.parametrize("tool", [lambda code: 7, lambda code: None, lambda code: "\ud800"])
def test_a_tool_that_says_no_text_answers_as_one_that_raises(make_engine, tool):
    want = make_engine(broken).generate(random_requests())
    assert any(0 in completion.mask for (completion,) in want)
    assert make_engine(tool).generate(random_requests()) == want


def test_a_tool_is_called_once_for_each_call_with_the_code_between_its_delimiters(
    make_engine, tokenizer
):
    asked = []

    def tool(code):
        asked.append(code)
        return reverse(code)

    engine = make_engine(tool)
    completions = [completion for (completion,) in engine.generate(random_requests())]
    parts = [parse_completion(completion.tokens, tokenizer) for completion in completions]
    pairs = [
        (call["text"], output["text"])
        for said in parts
        for call, output in itertools.pairwise(said)
        if (call["type"], output["type"]) == ("python", "python_output")
    ]
    assert pairs
    called = sorted(asked)
    for code, output in pairs:
        called.remove(code)  # at least once each
        assert output == reverse(code) or reverse(code).startswith(output)  # cut at the limit


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


def test_a_cancelled_request_whose_output_is_being_fed_frees_its_slot(make_engine):
    engine = make_engine(lambda code: "12 + 34, " * 20, slots=1)
    calling = next(
        request
        for request, (completion,) in zip(
            random_requests(), make_engine(reverse).generate(random_requests()), strict=True
        )
        if 0 in completion.mask
    )
    job = engine.submit(calling)
    while not job.rows[0].forced_tokens:
        engine.step()
    engine.cancel(job)
    assert engine.free == 1
    assert not engine.step()
    short = dataclasses.replace(calling, max_tokens=2)
    assert engine.generate([short])


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
