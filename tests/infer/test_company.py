"""What a request gets is the same to the last bit whoever else is in the engine."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxchat.config import ModelConfig
from jaxchat.infer.engine import Engine, Request
from jaxchat.model.gpt import init_params

SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "alternatives": 3},
    {},  # greedy
)
MODERN = {"window_pattern": "SL", "smear": True, "value_embeds": True, "residual_scalars": True}


@pytest.fixture(scope="module", params=["classic", "modern"])
def engine(request, tokenizer):
    """With a short window of 128 in the modern one, shorter than the texts."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, sequence_len=512, n_layer=2, n_head=4, n_kv_head=2,
        n_embd=64, backout=request.param == "modern",
        **MODERN if request.param == "modern" else {},
    )  # fmt: skip
    params = init_params(jax.random.key(0), config)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    return Engine(params, config, tokenizer, slots=32, max_len=256, steps_per_dispatch=4)


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


def test_samples_do_not_depend_on_how_many_there_are(engine):
    request = dataclasses.replace(random_requests(1, seed=5)[0], n=5, temperature=1.0)
    ((one,),) = engine.generate([dataclasses.replace(request, n=1)])
    (five,) = engine.generate([request])
    (many,) = engine.generate([dataclasses.replace(request, n=40)])
    assert many[:5] == five
    assert five[0] == one
