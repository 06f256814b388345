"""Short questions answered layer by layer, as any engine answers them."""

import dataclasses

import jax
import numpy as np
import pytest
from compilation import compilations
from whole_model import shaken

from jaxchat.inference.engine import Engine, Request
from jaxchat.inference.layerwise import MOST_READ, LayerwiseEngine
from jaxchat.model.gpt import init_params

PROMPTS = [(7,), (1, 50, 3), tuple(range(40, 40 + MOST_READ))]


@pytest.fixture
def quick(params, config, tokenizer):
    return LayerwiseEngine(lambda: params, config, tokenizer)


def is_same(got, want):
    assert got.tokens == want.tokens
    assert (got.mask, got.finish_reason) == (want.mask, want.finish_reason)
    np.testing.assert_allclose(got.logprobs, want.logprobs, rtol=1e-4, atol=1e-5)


def test_its_answers_are_an_engines(quick, params, config, tokenizer):
    engine = Engine(params, config, tokenizer, slots=1)
    requests = [Request(prompt, max_tokens=60) for prompt in PROMPTS]
    requests += [Request(PROMPTS[1], max_tokens=40, temperature=1.0, seed=n) for n in range(6)]
    requests += [Request(PROMPTS[1], max_tokens=20, temperature=0.7, top_k=9, seed=3)]
    requests += [Request((5,) * 255, max_tokens=9)]  # the context's end, and not taken
    called = False
    for request in requests:
        ((got,),), ((want,),) = quick.generate([request]), engine.generate([request])
        is_same(got, want)
        called |= 0 in want.mask
    assert called, "a tool's answer is read in the same way"


def test_what_the_middle_layer_gives_is_taken_back_out(config, tokenizer):
    modern = dataclasses.replace(config, backout=True, residual_scalars=True)
    params = shaken(init_params(jax.random.key(3), modern), 4, 0.2)
    engine = Engine(params, modern, tokenizer, slots=1)
    request = Request(PROMPTS[1], max_tokens=20)
    ((want,),) = engine.generate([request])
    ((got,),) = LayerwiseEngine(lambda: params, modern, tokenizer).generate([request])
    is_same(got, want)


def test_what_it_does_not_take_an_ordinary_engine_answers(quick, params, config, tokenizer):
    engine = Engine(params, config, tokenizer, slots=1)
    short = Request(PROMPTS[1], max_tokens=12)
    others = [
        Request((3,) * (MOST_READ + 1), max_tokens=12),
        dataclasses.replace(short, n=2, temperature=1.0),
        dataclasses.replace(short, repetition_penalty=1.5),
        dataclasses.replace(short, alternatives=2),
    ]
    wanted = [engine.generate([request]) for request in [short, *others, short]]
    got = [quick.generate([request]) for request in [short, *others, short]]
    assert got[1:-1] == wanted[1:-1], "to the bit"
    for ((one,),), ((want,),) in zip(got[::5], wanted[::5], strict=True):
        is_same(one, want)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_question_is_prepared_before_its_weights_are_read(params, config, tokenizer, temperature):
    alike = dataclasses.replace(config, n_layer=4, window_pattern="L", value_embeds=False)
    cut = {name: value for name, value in params.items() if not name.startswith("value_embeds")}
    blocks = {f"h_{n}": {**params["h_0"]} for n in range(4)}
    for block in blocks.values():
        block["attn"] = {k: v for k, v in block["attn"].items() if k != "ve_gate"}
    shared, read = {**cut, **blocks}, []
    quick = LayerwiseEngine(lambda: read.append(1) or shared, alike, tokenizer)
    assert not read
    request = Request(PROMPTS[1], max_tokens=100, temperature=temperature)
    with compilations() as compiled:
        quick.prepare(request)
    assert read == [1]
    assert compiled() <= 3, "layers that are alike share a program"
    with compilations() as compiled:
        ((answer,),) = quick.generate([request])
    assert compiled() == 0
    engine = Engine(shared, alike, tokenizer, slots=1)
    is_same(answer, engine.generate([request])[0][0])


def test_an_error_leaves_it_usable(quick, monkeypatch):
    request = Request(PROMPTS[1], max_tokens=12)
    wanted = quick.generate([request])
    with monkeypatch.context() as patch:
        patch.setattr(quick, "_step", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            quick.generate([request])
    assert quick.generate([request]) == wanted
