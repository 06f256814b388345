"""Engines on several devices as one: the same, to the last bit, as one engine."""

import jax
import numpy as np
import pytest

from jaxchat.config.schema import MeshConfig
from jaxchat.inference.engine import Engine, EngineError, Request
from jaxchat.inference.replicas import Replicas, make_service, serving_devices
from jaxchat.model.backend import Compute
from jaxchat.parallel.mesh import make_mesh, param_shardings, put, replicated

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


def test_all_are_at_work_between_two_steps_and_one_waits_for_no_other(pool, monkeypatch):
    done = []
    for name in ("start", "finish"):
        old = getattr(Engine, name)

        def noted(engine, *args, name=name, old=old, **kwargs):
            done.append((name, pool.engines.index(engine)))
            return old(engine, *args, **kwargs)

        monkeypatch.setattr(Engine, name, noted)
    jobs = [pool.submit(request) for request in random_requests(6, seed=5)]
    pool.step()
    assert all(engine._in_flight for engine in pool.engines)
    done.clear()
    pool.step()
    assert done == [(name, number) for number in range(3) for name in ("finish", "start")]
    for job in jobs:
        pool.cancel(job)
    pool.step()
    assert not any(engine._in_flight for engine in pool.engines)


def test_engines_side_by_side_on_one_device_give_what_one_gives(params, config, tokenizer, one):
    lanes = make_service(params, config, tokenizer, lanes=3, **SETTINGS)
    if jax.default_backend() != "cpu":
        pytest.skip("lanes are for a CPU")
    assert isinstance(lanes, Replicas)
    assert {engine.device for engine in lanes.engines} == {jax.devices()[0]}
    first, *others = lanes.engines
    for given in (jax.tree.map(lambda x: -x, params), params):
        lanes.set_params(given)
        kernel = first.params["lm_head"]["kernel"]
        np.testing.assert_array_equal(kernel, given["lm_head"]["kernel"])
        for engine in others:
            assert engine.params is first.params, "the weights are there more than once"
    assert len(lanes._firsts) == 1
    requests = random_requests(30, seed=6)
    assert lanes.generate(requests) == one.generate(requests)


def test_warming_up_ends_where_it_is_stopped(params, config, tokenizer, one):
    lanes = make_service(params, config, tokenizer, lanes=2, **SETTINGS)
    asked = []
    lanes.warm_up(lambda: bool(asked.append(None)) or len(asked) > 2)
    assert len(asked) == 3
    requests = random_requests(4, seed=9)
    assert lanes.generate(requests) == one.generate(requests)


def test_an_interrupt_while_an_engine_starts_leaves_none_of_it_behind(
    params, config, tokenizer, one, monkeypatch
):
    lanes = make_service(params, config, tokenizer, lanes=2, **SETTINGS)
    requests, old, calls = random_requests(6, seed=7), Engine._decode, []

    def interrupted(engine, rows):
        calls.append(engine)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return old(engine, rows)

    monkeypatch.setattr(Engine, "_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lanes.generate(requests)
    monkeypatch.undo()
    assert lanes.free == lanes.slots
    assert lanes.generate(requests) == one.generate(requests)


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
            (shard,) = [s for s in whole.addressable_shards if s.device == engine.device]
            assert mine.unsafe_buffer_pointer() == shard.data.unsafe_buffer_pointer()


def test_weights_that_are_split_over_a_mesh_are_joined_like_others(params, config, tokenizer):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    split = put(params, param_shardings(mesh, params))
    settings = {**SETTINGS, "compute": Compute(decode_rows=8, joined=True)}
    whole, other = (Engine(p, config, tokenizer, **settings) for p in (params, split))
    requests = random_requests(4, seed=6)
    assert other.generate(requests) == whole.generate(requests)
    assert "c_qkv" in other.params["h_0"]["attn"]
    other.set_params(jax.tree.map(lambda x: -x, split))
    other.set_params(split)
    assert other.generate(requests) == whole.generate(requests)


def test_virtual_devices_of_a_cpu_are_not_worth_an_engine_each(params, config, tokenizer):
    if jax.default_backend() == "cpu":
        assert serving_devices() == jax.devices()[:1]
        assert isinstance(make_service(params, config, tokenizer, **SETTINGS), Engine)


def test_a_pool_needs_a_device(params, config, tokenizer):
    with pytest.raises(EngineError, match="devices is empty"):
        Replicas(params, config, tokenizer, devices=[])
