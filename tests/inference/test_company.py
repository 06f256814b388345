"""What a request gets is the same to the last bit whoever else is in the engine."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compilations
from whole_model import shaken

from jaxchat.config.schema import ModelConfig
from jaxchat.inference import jitted
from jaxchat.inference.engine import PATIENCE, Engine, EngineError, Request
from jaxchat.inference.jitted import insert
from jaxchat.model.backend import Compute
from jaxchat.model.gpt import features, init_params, unembed
from jaxchat.model.kv_cache import init_cache

SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "alternatives": 3},
    {},  # greedy
)
ROUNDED = Compute(matmul="bfloat16", attention="banded")
MODERN = {"window_pattern": "SL", "smear": True, "value_embeds": True, "residual_scalars": True}


@pytest.fixture(scope="module", params=["classic", "modern", "rounded"])
def engine(request, tokenizer):
    """With a short window of 128 in the modern one, shorter than the texts; in `rounded` a classic
    one whose products are of bfloat16."""
    compute = ROUNDED if request.param == "rounded" else Compute()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, sequence_len=512, n_layer=2, n_head=4, n_kv_head=2,
        n_embd=64, backout=request.param == "modern",
        **MODERN if request.param == "modern" else {},
    )  # fmt: skip
    params = init_params(jax.random.key(0), config)
    params = shaken(params, 1, 0.1)
    engine = Engine(
        params, config, tokenizer, slots=31, max_len=256, steps_per_dispatch=4, compute=compute
    )
    asked = []
    engine.warm_up(lambda: bool(asked.append(None)))
    assert len(asked) == 39  # see test_a_second_engine_and_any_mix_of_requests_compile_little
    return engine


def random_requests(count, seed):
    rng = np.random.default_rng(seed)
    return [
        Request(
            tuple(rng.integers(0, 256, int(rng.choice([1, 5, 65, 66, 130, 190]))).tolist()),
            max_tokens=int(rng.integers(1, 66)),
            seed=number,
            **SETTINGS[int(rng.integers(len(SETTINGS)))],
        )
        for number in range(count)
    ]


def test_alone_is_among_31_others_bit_for_bit(engine):
    requests = random_requests(32, seed=0)
    together = engine.generate(requests)
    for number in range(0, 32, 4):
        assert engine.generate([requests[number]])[0] == together[number]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_company_other_slots_and_other_times_change_no_bit(engine, seed):
    """The same request in an engine that others join and leave all the while."""
    rng = np.random.default_rng(seed)
    mine = random_requests(6, seed=9)
    alone = [engine.generate([request])[0] for request in mine]
    crowd = [engine.submit(request) for request in random_requests(60, seed)]
    jobs, left = [], list(mine)
    while engine.step() or left:
        if left and rng.random() < 0.3:
            jobs.append(engine.submit(left.pop(0)))
        if rng.random() < 0.2:
            engine.cancel(crowd.pop(int(rng.integers(len(crowd)))))
    assert [[row.completion for row in job.rows] for job in jobs] == alone


CHANGES = (
    {"temperature": 1.0, "repetition_penalty": 1.2, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 30, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    {"ignore_eos": True, "logit_bias": ((65, 5.0),), "alternatives": 2},
)


def test_company_that_asks_for_changes_changes_no_bit(engine):
    plain = random_requests(9, seed=6)
    changed = [
        dataclasses.replace(request, **CHANGES[number % len(CHANGES)])
        for number, request in enumerate(random_requests(9, seed=7))
    ]
    alone = [engine.generate([request])[0] for request in [*plain, *changed][::2]]
    assert engine.generate([*plain, *changed])[::2] == alone


def test_samples_do_not_depend_on_how_many_there_are(engine):
    request = dataclasses.replace(random_requests(1, seed=5)[0], n=5, temperature=1.0)
    ((one,),) = engine.generate([dataclasses.replace(request, n=1)])
    (five,) = engine.generate([request])
    (many,) = engine.generate([dataclasses.replace(request, n=40)])
    assert many[:5] == five
    assert five[0] == one


def test_200_requests_that_join_and_leave_decode_as_full_forward_passes_do(engine, tokenizer):
    """Greedy, with cancels; after warm_up nothing is compiled, whatever comes."""
    rng = np.random.default_rng(3)
    requests = [
        dataclasses.replace(request, temperature=0.0, n=int(rng.integers(1, 3)))
        for request in random_requests(200, seed=3)
    ]
    left, jobs, cancelled = list(requests), [], 0
    with compilations() as count:
        while left or engine.step():
            for _ in range(min(len(left), int(rng.integers(0, 12)))):
                jobs.append(engine.submit(left.pop()))
            if rng.random() < 0.3:
                engine.cancel(jobs[int(rng.integers(len(jobs)))])
                cancelled += 1
            engine.step()
    assert count() == 0
    served = [job for job in jobs if job.done]
    assert len(served) > 150
    assert cancelled > 5
    for job in served[::2]:
        for row in job.rows:
            assert_greedy(engine, tokenizer, job.request.tokens, row.completion)


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def whole(params, tokens, config, compute):
    """Logits of whole rows, computed as the engine does."""
    return unembed(params, features(params, tokens, config, compute), config, compute)


def assert_greedy(engine, tokenizer, prompt, completion):
    """Each sampled token is the likeliest after those before it, up to rounding."""
    ids = np.zeros((1, engine.max_len), np.int32)
    text = [*prompt, *completion.tokens]
    ids[0, : len(text)] = text
    logits = np.asarray(whole(engine.params, jnp.asarray(ids), engine.config, engine.compute))[0]
    # a prompt and what follows are attended to by different formulas, in different roundings
    slack = 1e-4 if engine.compute.matmul == "default" else 5e-2
    logits = logits[len(prompt) - 1 : len(text) - 1]
    chosen = logits[np.arange(len(completion.tokens)), completion.tokens]
    sampled = np.array(completion.mask) == 1
    assert (chosen >= logits.max(axis=-1) - slack)[sampled].all()
    logprobs = chosen - np.logaddexp.reduce(logits.astype(np.float64), axis=-1)
    np.testing.assert_allclose(completion.logprobs, np.where(sampled, logprobs, 0.0), atol=slack)
    ends = (tokenizer.special("<|assistant_end|>"), tokenizer.bos)
    stops = [
        token in ends and mask
        for token, mask in zip(completion.tokens, completion.mask, strict=True)
    ]
    assert not any(stops[:-1])
    assert (completion.finish_reason == "stop") == bool(stops[-1])


def test_few_slots_are_not_rounded(engine, tokenizer):
    few, many = (
        Engine(engine.params, engine.config, tokenizer, slots=n, max_len=64, compute=ROUNDED)
        for n in (7, 8)
    )
    assert (few.compute.matmul, few.compute.attention) == ("default", "blocked")
    assert (many.compute.matmul, many.compute.attention) == ("bfloat16", "banded")


def test_warm_up_ends_early_where_it_is_stopped_and_the_engine_works(engine):
    asked = []
    engine.warm_up(lambda: bool(asked.append(None)) or len(asked) == 3)
    assert len(asked) == 3
    requests = random_requests(3, seed=8)
    assert engine.generate(requests) == engine.generate(requests)


def test_warm_up_is_for_an_idle_engine(engine):
    job = engine.submit(random_requests(1, seed=0)[0])
    with pytest.raises(EngineError, match="warm_up was called with requests under way"):
        engine.warm_up()
    engine.cancel(job)


def test_the_cache_grows_for_a_long_text_and_shrinks_beside_one_that_continues(engine):
    long = Request((5,) * 150, max_tokens=8, temperature=1.0, seed=1)
    others = [Request((7, 8, 9), max_tokens=120, temperature=1.0, seed=seed) for seed in range(16)]
    ends = [len(samples[0].tokens) for samples in engine.generate(others)]
    other = others[ends.index(120)]  # one that continues after the cache can shrink
    alone = [engine.generate([request]) for request in (long, other)]
    for _ in range(PATIENCE + 2):
        engine.generate([Request((1,), max_tokens=1)])
    assert engine._cache_length == engine._cache_lengths[0]
    job = engine.submit(other)
    engine.step()
    assert engine.generate([long]) == alone[0]
    assert engine._cache_length == 256
    spans = []
    while not job.done:
        engine.step()
        spans.append(engine._cache_length)
    assert spans[0] == 256
    assert spans[-1] == 128
    assert [row.completion for row in job.rows] == alone[1][0]


def test_the_cache_is_donated_and_never_copied_whole(engine):
    rows = jitted.packed_slots([None] * engine.slots, 4)
    engine._resize(256)
    size = sum(array.nbytes for array in jax.tree.leaves(engine._cache))
    decode = jitted.decode_steps.lower(
        engine.params, engine._cache, rows, config=engine.config, compute=engine.compute,
        pauses=(1,), truncate=False, alternatives=0,
    ).compile()  # fmt: skip
    slots = jitted.slots_to_fill([0], engine.slots)
    place = insert.lower(engine._cache, engine.prefill((1,)), slots).compile()
    for program in (decode, place):
        plan = program.memory_analysis()
        assert plan.alias_size_in_bytes >= size
        assert plan.temp_size_in_bytes < size / 2


@pytest.mark.parametrize("slots", [1, 2])
def test_no_step_copies_a_layer_of_the_cache(config, params, slots):
    """One row once did, four times each, as XLA wrote it otherwise than two."""
    cache = init_cache(config, slots, 128)
    decode = jitted.decode_steps.lower(
        params, cache, jitted.packed_slots([None] * slots, 4), config=config,
        compute=Compute(), pauses=(1,), truncate=False, alternatives=0,
    ).compile()  # fmt: skip
    program = decode.as_text()
    for shape in {",".join(map(str, layer.shape)) for layer in cache.k}:
        assert f"f32[{shape}]" in program
        copies = re.findall(rf"= f32\[{shape}\]\S* copy(?:-start)?\(", program)
        assert not copies, f"{len(copies)} copies of [{shape}]"
