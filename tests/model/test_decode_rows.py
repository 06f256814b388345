"""Decoding of few rows as of more, which a GPU does faster, against decoding them as they are."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import CLASSIC, MODERN, lively_params

from jaxchat.config.schema import ComputeConfig, ModelConfig
from jaxchat.inference import jitted
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS, PLAIN, Compute, backend
from jaxchat.model.capabilities import assumed_compute, choose_compute, inference_compute
from jaxchat.model.kernels.matmul import matmul
from jaxchat.model.kv_cache import Cache, init_cache

ROWS = 4
SHAPES = {
    "classic": CLASSIC,
    "modern": MODERN,
    "odd": dataclasses.replace(MODERN, n_embd=42, n_head=3, n_kv_head=1, vocab_size=67),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
decode = jax.jit(gpt.decode, static_argnames=("config", "compute"))


def weights_of(config: ModelConfig, compute: Compute = PLAIN) -> Any:
    begun = gpt.init_params(jax.random.key(0), config)
    return jax.tree.map(
        lambda x, y: (x + 0.1 * (y - 0.1)).astype(compute.dtype), begun, lively_params(config)
    )


def decoded(
    config: ModelConfig, compute: Compute, batch: int, steps: int = 70
) -> tuple[np.ndarray, Cache]:
    """Logits [steps,B,V] of tokens one after the other, in rows that begin at once, and the cache
    after them; the last row stands still in every third step.
    """
    params = weights_of(config, compute)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, (steps, batch), np.int32)
    cache, found = init_cache(config, batch, steps, compute.dtype), []
    for step, row in enumerate(tokens):
        active = jnp.arange(batch) < batch - (batch > 1 and step % 3 == 1)
        logits, cache = decode(params, row, cache, config, compute, active=active)
        found.append(logits)
    return np.stack(found), cache


@every_shape
@pytest.mark.parametrize("batch", [1, 3])
def test_few_rows_decode_in_float32_as_they_do_alone(config: ModelConfig, batch: int) -> None:
    want, plain = decoded(config, PLAIN, batch)
    got, cache = decoded(config, Compute(decode_rows=ROWS), batch)
    assert got.shape == want.shape
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=2e-6 * scale, rtol=0)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(plain), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


@every_shape
def test_in_half_precision_they_are_no_further_from_float32(config: ModelConfig) -> None:
    exact = decoded(config, PLAIN, 1)[0]

    def distance(rows: int) -> float:
        logits = decoded(config, Compute(jnp.bfloat16, decode_rows=rows), 1)[0]
        return float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))

    assert distance(2) <= 1.05 * distance(1)


def test_enough_rows_are_decoded_by_the_very_program_of_the_plain_form() -> None:
    params = gpt.param_shapes(MODERN)
    cache = jax.eval_shape(lambda: init_cache(MODERN, ROWS, 64))
    tokens = jax.ShapeDtypeStruct((ROWS,), jnp.int32)

    def text(compute: Compute) -> str:
        return str(decode.lower(params, tokens, cache, MODERN, compute).as_text())

    assert text(Compute(decode_rows=ROWS)) == text(PLAIN)
    assert text(Compute(decode_rows=ROWS + 1)) != text(PLAIN)


def weight_products(compute: Compute, batch: int = 1) -> list[tuple[int, str]]:
    """Rows and result's type of all products with weights, as a GPU's compiler gets them."""
    config = dataclasses.replace(MODERN, n_embd=128, n_head=2, n_kv_head=2)
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, compute.dtype), gpt.param_shapes(config)
    )
    cache = jax.eval_shape(lambda: init_cache(config, batch, 64, compute.dtype))
    slots = jax.ShapeDtypeStruct((batch, len(jitted.SLOT) + 4), jnp.int32)
    traced = jitted.decode_steps.trace(
        params, cache, slots, config=config, compute=compute, pauses=(1,), truncate=False,
        alternatives=0,
    )  # fmt: skip
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    found = re.findall(
        r"dot_general .*: \(tensor<([\dx]+)xbf16>, tensor<\d+x\d+xbf16>\) -> tensor<\S*x(\w+)>",
        text,
    )
    layers = 6 * config.n_layer
    gates = sum(spec.value_embedding for spec in gpt.layer_specs(config))
    assert len(found) == layers + gates + 1
    return [(int(shape.split("x")[0]), kind) for shape, kind in found]


def test_a_gpu_gets_products_of_matrices_summed_in_float32_for_one_row() -> None:
    """Of a vector and a matrix XLA would make rounded products of two numbers, and then sums."""
    compute = dataclasses.replace(
        assumed_compute(ComputeConfig(), backend("gpu")), attention="blocked"
    )
    *layers, head = weight_products(compute)
    assert set(layers) == {(2, "f32")}
    assert head[1] == "f32"
    alone = weight_products(dataclasses.replace(compute, decode_rows=1))
    assert set(alone) == {(1, "f32")}


def test_a_product_in_half_precision_is_that_in_float32_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((1, 512), (512, 64))
    )
    wide = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    got = np.asarray(matmul(x, kernel), np.float64)
    np.testing.assert_allclose(got, wide, rtol=2.0**-8, atol=1e-5)


def test_only_a_gpu_decodes_more_rows_than_there_are_and_always() -> None:
    assert {name: row.decode_rows for name, row in BACKENDS.items()} == {
        "cpu": 1, "gpu": 2, "tpu": 1,
    }  # fmt: skip
    for choose in (choose_compute, functools.partial(inference_compute)):
        assert choose(ComputeConfig(), CLASSIC).decode_rows == 1
    gpu = choose_compute(ComputeConfig(), CLASSIC, jnp.float32, on=backend("gpu"))
    assert gpu.decode_rows == gpu.unrounded().decode_rows == 2
