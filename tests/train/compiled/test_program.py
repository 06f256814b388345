"""Programs of real stages, compiled for the CPU devices of the tests."""

from dataclasses import replace

import jax
import pytest

from jaxchat.config import loading
from jaxchat.config.derive import count_params
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS, Compute
from jaxchat.model.joined import JOINED
from jaxchat.train.compiled import engine, program
from jaxchat.train.compiled.counts import ELEMENTWISE, PRODUCT
from jaxchat.train.compiled.engine import EngineShape
from jaxchat.train.compiled.program import StepShape
from jaxchat.train.compiled.targets import TARGETS

H100 = TARGETS["h100"]
SETTINGS = (
    "mesh.host_devices=0", "hardware.devices=2", "run.depth=2", "model.n_embd=32", "model.n_head=2",
    "model.n_kv_head=2", "model.sequence_len=64", "tokenizer.vocab_size=300",
    "base.batch_tokens=512", "base.micro_rows=2", "rl.problems_per_step=2",
    "rl.samples_per_problem=4", "rl.micro_rows=3",
)  # fmt: skip


@pytest.fixture
def config(monkeypatch):
    """A tiny run, whose programs are compiled here."""
    for module in (program, engine):
        monkeypatch.setattr(module, "find_devices", lambda _, count: jax.devices()[:count])
        monkeypatch.setattr(module, "backend", lambda _: BACKENDS["cpu"])
    with jax.numpy_dtype_promotion("standard"):
        yield loading.load(loading.find_tier("cpu"), SETTINGS)


def test_a_stage_has_the_batch_that_it_trains_on(config):
    assert program.step_shape(config, "base") == StepShape(2, 4, 64, shards=2)
    assert program.step_shape(config, "base").device_rows == 2
    rl = program.step_shape(config, "rl", 32)  # 8 samples on 2 devices, at most 3 at once
    assert rl == StepShape(2, 4, 32, shards=2, advantages=True)
    shapes = {name: array.shape for name, array in rl.batch().items()}
    assert shapes == {"tokens": (2, 4, 33), "mask": (2, 4, 33), "advantage": (2, 4)}


def test_a_step_is_compiled_in_two_forms_and_what_it_holds_is_known(config):
    other = {"xla_cpu_enable_fast_min_max": False}
    found = program.compile_step(config, H100, "rl", Compute(), tokens=32, beside=other)
    total = count_params(config.model)["total"]
    assert found.held["parameters"] == 4 * total
    assert 4 * total // 2 <= found.held["optimizer"] <= 4 * 2 * total
    hyperparameters = found.arguments - sum(found.held.values())
    assert 0 < hyperparameters < 256, "a stage's rates and horizons are one small array"
    assert found.counts.product_flops > 0
    assert found.counts.launches == sum(kernel.times for kernel in found.kernels)
    assert found.beside is not None
    assert found.beside.counts.products == found.counts.products
    assert found.beside.beside is None


def test_an_engines_programs_are_compiled(config):
    shape = EngineShape(slots=3, positions=64, prompt=64, truncate=True)
    params, item = count_params(config.model)["total"], 4
    prefill = engine.compile_prefill(config, H100, shape)
    assert prefill.held["parameters"] == item * params, "with the head, that it does not read"
    assert prefill.arguments < sum(prefill.held.values())
    decode = engine.compile_decode(config, H100, shape)
    assert decode.held["cache"] >= item * 3 * 2 * 2 * 64 * config.model.n_embd
    assert decode.memory >= sum(decode.held.values())
    inside = [kernel for kernel in decode.kernels if kernel.times % engine.STEPS == 0]
    assert {PRODUCT, ELEMENTWISE} <= {kernel.kind for kernel in inside}, "in the loop of steps"


def test_an_engines_weights_are_those_that_it_holds(config):
    """As `Engine.set_params` makes them: on a GPU with the joined kernels."""
    shapes = gpt.param_shapes(config.model)
    joined = engine._weights(config, replace(Compute(), joined=True))
    assert joined["h_0"]["attn"][JOINED]["kernel"].shape == (32, 3 * 32)
    sizes = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (shapes, joined))
    assert len(set(sizes)) == 1
    assert jax.tree.structure(engine._weights(config, Compute())) == jax.tree.structure(shapes)
