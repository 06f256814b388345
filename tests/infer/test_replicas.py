"""Engines on several devices as one: the same, to the last bit, as one engine."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxchat.config import MeshConfig
from jaxchat.infer.engine import Engine, EngineError, Request
from jaxchat.infer.replicas import Replicas, make_service, serving_devices
from jaxchat.sharding import make_mesh, param_shardings, put, replicated

SETTINGS = {"slots": 4, "max_len": 128, "steps_per_dispatch": 4}


@pytest.fixture(scope="module")
def pool(params, config, tokenizer):
    devices = jax.devices()[:3]  # each compiles for itself
    return Replicas(params, config, tokenizer, devices=devices, **SETTINGS)


@pytest.fixture(scope="module")
def one(params, config, tokenizer):
    return Engine(params, config, tokenizer, **SETTINGS)


def random_requests(count, seed=0, n=1):
    rng = np.random.default_rng(seed)
    return [
        Request(
            tuple(rng.integers(0, 256, int(rng.integers(1, 60))).tolist()),
            max_tokens=int(rng.integers(1, 50)), temperature=float(number % 2), seed=number, n=n,
        )
        for number in range(count)
    ]  # fmt: skip


def test_a_pool_gives_what_one_engine_gives(pool, one):
    requests = random_requests(30)
    assert pool.slots == 12
    assert pool.generate(requests) == one.generate(requests)
    many = random_requests(2, seed=1, n=17)
    assert pool.generate(many) == one.generate(many)
    assert [*pool.stream(requests[3])] == [*one.stream(requests[3])]


def test_work_is_spread_and_samples_of_a_request_stay_together(pool):
    jobs = [pool.submit(request) for request in random_requests(3, seed=2, n=4)]
    pool.step()
    for engine in pool.engines:
        rows = {row for row in engine._rows if row is not None}
        assert any(rows <= set(job.rows) for job in jobs)
    for job in jobs:
        pool.cancel(job)
    assert not pool.step()
    assert pool.free == pool.slots


def test_all_devices_are_at_work_before_one_is_waited_for(pool, monkeypatch):
    done = []
    for name in ("start", "finish"):
        old = getattr(Engine, name)

        def told(engine, *args, name=name, old=old, **kwargs):
            done.append(name)
            return old(engine, *args, **kwargs)

        monkeypatch.setattr(Engine, name, told)
    pool.generate([dataclasses.replace(request, max_tokens=2) for request in random_requests(6)])
    assert done[:6] == ["start"] * 3 + ["finish"] * 3


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=4, tensor=2)])
def test_weights_of_a_mesh_are_used_where_they_lie(pool, params, mesh):
    mesh = make_mesh(mesh)
    layout = param_shardings(mesh, params) if mesh.shape["fsdp"] > 1 else replicated(mesh)
    laid_out = put(params, layout)
    request = random_requests(1, seed=4)[0]
    before = pool.generate([request])
    pool.set_params(jax.tree.map(lambda x: -x, laid_out))
    assert pool.generate([request]) != before
    pool.set_params(laid_out)
    assert pool.generate([request]) == before
    if mesh.shape["fsdp"] == 1:
        for engine in pool.engines:
            mine, whole = engine.params["lm_head"]["kernel"], laid_out["lm_head"]["kernel"]
            (shard,) = [s for s in whole.addressable_shards if s.device == engine._device]
            assert mine.unsafe_buffer_pointer() == shard.data.unsafe_buffer_pointer()


def test_virtual_devices_of_a_cpu_are_not_worth_an_engine_each(params, config, tokenizer):
    if jax.default_backend() == "cpu":
        assert serving_devices() == jax.devices()[:1]
        assert isinstance(make_service(params, config, tokenizer, **SETTINGS), Engine)


def test_a_pool_needs_a_device(params, config, tokenizer):
    with pytest.raises(EngineError, match="devices is empty"):
        Replicas(params, config, tokenizer, devices=[])
