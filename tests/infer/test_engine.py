"""The engine against naive decoding: one request, one full forward pass a token, no cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchat.infer.engine import Engine, EngineError, Request
from jaxchat.model.gpt import forward
from jaxchat.tools.calculator import run_tool

forward = jax.jit(forward, static_argnames="config")


@pytest.fixture(scope="module")
def make_engine(params, config, tokenizer):
    return functools.partial(Engine, params, config, tokenizer, slots=8, steps_per_dispatch=4)


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


@pytest.fixture(scope="module")
def naive(params, config, tokenizer):
    """Greedy decoding as it is defined; gives tokens, mask, log-probabilities and the reason."""
    special = tokenizer.special

    def decode(prompt, max_tokens, tool=run_tool):
        ids, mask, logprobs = list(prompt), [], []
        while len(mask) < max_tokens and len(ids) < config.sequence_len:
            padded = np.zeros((1, config.sequence_len), np.int32)
            padded[0, : len(ids)] = ids
            row = forward(params, jnp.asarray(padded), config)[0, len(ids) - 1]
            token = int(row.argmax())
            ids.append(token)
            mask.append(1)
            logprobs.append(float(jax.nn.log_softmax(row)[token]))
            if token in (special("<|assistant_end|>"), tokenizer.bos):
                return ids[len(prompt) :], mask, logprobs, "stop"
            if token == special("<|python_end|>"):
                code = call_before(ids[len(prompt) : -1], mask[:-1])
                if code is not None:
                    output = tokenizer.encode(tool(tokenizer.decode(code)))
                    forced = [special("<|output_start|>"), *output, special("<|output_end|>")]
                    room = min(max_tokens - len(mask), config.sequence_len - len(ids))
                    ids += forced[:room]
                    mask += [0] * len(forced[:room])
                    logprobs += [0.0] * len(forced[:room])
        return ids[len(prompt) :], mask, logprobs, "length"

    def call_before(completion, mask):
        """The code of the call that a python_end after these tokens would end; None: no call."""
        start, end = special("<|python_start|>"), special("<|python_end|>")
        for at in range(len(completion) - 1, -1, -1):
            if mask[at] and completion[at] == end:
                return None
            if mask[at] and completion[at] == start:
                return completion[at + 1 :]
        return None

    return decode


def random_prompts(tokenizer, count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, count)
    return [tuple(rng.integers(0, 256, n).tolist()) for n in lengths]


def assert_same(got, want):
    """The same tokens; log-probabilities up to float32's rounding."""
    for a, b in zip(got, want, strict=True):
        assert (a.tokens, a.mask, a.finish_reason) == (b.tokens, b.mask, b.finish_reason)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


def test_greedy_decoding_equals_the_naive_one_with_tool_calls_in_the_loop(engine, naive, tokenizer):
    prompts = random_prompts(tokenizer, 20)
    requests = [Request(prompt, max_tokens=40) for prompt in prompts]
    reasons, forced = set(), 0
    for request, (got,) in zip(requests, engine.generate(requests), strict=True):
        tokens, mask, logprobs, reason = naive(request.tokens, request.max_tokens)
        assert (list(got.tokens), list(got.mask)) == (tokens, mask)
        assert got.finish_reason == reason
        np.testing.assert_allclose(got.logprobs, logprobs, atol=1e-4)
        reasons.add(reason)
        forced += mask.count(0)
    assert reasons == {"stop", "length"}, "the fixture's model should do both; change its seed"
    assert forced > 20, "the fixture's model should call tools; change its seed"
