"""Engines that hold large kernels in fewer bits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from whole_model import shaken

from jaxchat.errors import ConfigError
from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.measure import weight_bytes
from jaxchat.model import capabilities, gpt
from jaxchat.model.backend import PLAIN
from jaxchat.model.capabilities import processor_flags, with_weights
from jaxchat.model.kernels import int8

PROMPTS = [list(range(5, 5 + length)) for length in (2, 9, 40, 100)]
can_bf16 = pytest.mark.skipif(
    not processor_flags() & capabilities.BFLOAT16_FLAGS, reason="no products of bfloat16 here"
)


@pytest.fixture(scope="module")
def wide(config):
    """A model whose kernels are large enough."""
    return dataclasses.replace(config, n_embd=64)


@pytest.fixture(scope="module")
def weights(wide):
    params = gpt.init_params(jax.random.key(0), wide)
    return shaken(params, 1, 0.1)


def answers(engine: Engine, prompts=PROMPTS, **settings: Any) -> list[Any]:
    requests = [Request(tuple(p), max_tokens=30, seed=n, **settings) for n, p in enumerate(prompts)]
    return [c for row in engine.generate(requests) for c in row]


def dequantized(params: Any) -> Any:
    def is_held(x: Any) -> bool:
        return isinstance(x, int8.Kernel)

    def one(x: Any) -> Any:
        return int8.dequantize(x) if is_held(x) else x

    return jax.tree.map(one, int8.quantize_kernels(params), is_leaf=is_held)


@pytest.mark.parametrize("slots", [1, 8])
def test_8_bits_give_the_tokens_of_the_weights_that_they_stand_for(slots, weights, wide, tokenizer):
    held = Engine(weights, wide, tokenizer, slots=slots, compute=with_weights(PLAIN, "int8"))
    plain = Engine(dequantized(weights), wide, tokenizer, slots=slots)
    found, expected = answers(held), answers(plain)
    assert [c.tokens for c in found] == [c.tokens for c in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-3)
    assert weight_bytes(held.params) < 0.35 * weight_bytes(plain.params)


def test_company_changes_no_bit_of_8_bits(weights, wide, tokenizer):
    engine = Engine(weights, wide, tokenizer, slots=4, compute=with_weights(PLAIN, "int8"))
    together = answers(engine, temperature=1.0)
    for number, prompt in enumerate(PROMPTS):
        request = Request(tuple(prompt), max_tokens=30, seed=number, temperature=1.0)
        ((completion,),) = engine.generate([request])
        assert completion == together[number]


def test_float32_is_what_few_slots_have_anyway(weights, wide, tokenizer):
    asked = Engine(weights, wide, tokenizer, slots=1, compute=with_weights(PLAIN, "float32"))
    assert answers(asked) == answers(Engine(weights, wide, tokenizer, slots=1))


@can_bf16
def test_bf16_is_for_one_slot_too(weights, wide, tokenizer):
    engine = Engine(weights, wide, tokenizer, slots=1, compute=with_weights(PLAIN, "bf16"))
    assert engine.params["lm_head"]["kernel"].dtype == jnp.bfloat16
    (several,) = answers(
        Engine(weights, wide, tokenizer, slots=8, compute=with_weights(PLAIN, "bf16")), PROMPTS[:1]
    )
    (one,) = answers(engine, PROMPTS[:1])
    np.testing.assert_allclose(one.logprobs[0], several.logprobs[0], atol=1e-2)


def test_new_weights_are_held_likewise(weights, wide, tokenizer):
    engine = Engine(weights, wide, tokenizer, slots=1, compute=with_weights(PLAIN, "int8"))
    before = answers(engine)
    engine.set_params(jax.tree.map(lambda x: 0.5 * x, weights))
    assert isinstance(engine.params["lm_head"]["kernel"], int8.Kernel)
    assert answers(engine) != before


def test_ids_that_the_tokenizer_lacks_are_cut_before(weights, wide, tokenizer):
    larger = dataclasses.replace(wide, vocab_size=wide.vocab_size + 10)
    params = gpt.init_params(jax.random.key(0), larger)
    engine = Engine(params, larger, tokenizer, slots=1, compute=with_weights(PLAIN, "int8"))
    assert engine.params["lm_head"]["kernel"].scale.shape == (tokenizer.vocab_size,)
    assert answers(engine)


def test_a_gpu_refuses_them_with_a_sentence(monkeypatch):
    monkeypatch.setattr(capabilities, "platform", lambda: "gpu")
    assert with_weights(PLAIN, "auto") == PLAIN
    with pytest.raises(ConfigError, match="--weights int8 is for a CPU, and this machine computes"):
        with_weights(PLAIN, "int8")


def test_bf16_needs_a_processor_that_multiplies_it(monkeypatch):
    monkeypatch.setattr(capabilities, "processor_flags", set)
    with pytest.raises(ConfigError, match="use int8"):
        with_weights(PLAIN, "bf16")
