"""The forms in which a GPU decodes, few rows as more and three kernels as one, against the plain
ones.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_variants import CLASSIC, MODERN, lively_params
from whole_model import decode, forward

from jaxchat.config.derive import layer_specs
from jaxchat.config.schema import ComputeConfig, ModelConfig
from jaxchat.inference import jitted
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS, PLAIN, Compute, backend
from jaxchat.model.capabilities import assumed_compute, choose_compute, inference_compute
from jaxchat.model.joined import join_kernels
from jaxchat.model.kernels.matmul import matmul
from jaxchat.model.kv_cache import Cache, init_cache

ROWS = 4
SHAPES = {
    "classic": CLASSIC,
    "modern": MODERN,
    "odd": dataclasses.replace(MODERN, n_embd=42, n_head=3, n_kv_head=1, vocab_size=67),
}
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def weights_of(config: ModelConfig, compute: Compute = PLAIN) -> Any:
    begun = gpt.init_params(jax.random.key(0), config)
    return jax.tree.map(
        lambda x, y: (x + 0.1 * (y - 0.1)).astype(compute.dtype), begun, lively_params(config)
    )


def joined(params: Any) -> Any:
    return {name: join_kernels(part) for name, part in params.items()}


def decoded(
    config: ModelConfig, compute: Compute, batch: int, steps: int = 70
) -> tuple[np.ndarray, Cache]:
    """Logits [steps,B,V] of tokens one after the other, in rows that begin at once, and the cache
    after them; the last row stands still in every third step.
    """
    params = weights_of(config, compute)
    if compute.joined:
        params = joined(params)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, (steps, batch), np.int32)
    cache, found = init_cache(config, batch, steps, compute.dtype), []
    for step, row in enumerate(tokens):
        active = jnp.arange(batch) < batch - (batch > 1 and step % 3 == 1)
        logits, cache = decode(params, row, cache, config, compute, active=active)
        found.append(logits)
    return np.stack(found), cache


@every_shape
@pytest.mark.parametrize(
    ("batch", "join"), [(1, False), (3, False), (1, True)], ids=["one", "three", "one, joined"]
)
def test_few_rows_decode_in_float32_as_they_do_alone(
    config: ModelConfig, batch: int, join: bool
) -> None:
    want, plain = decoded(config, PLAIN, batch)
    got, cache = decoded(config, Compute(decode_rows=ROWS, joined=join), batch)
    assert got.shape == want.shape
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, atol=2e-6 * scale, rtol=0)
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(plain), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


@every_shape
def test_in_half_precision_they_are_no_further_from_float32(config: ModelConfig) -> None:
    exact = decoded(config, PLAIN, 1)[0]

    def distance(compute: Compute) -> float:
        logits = decoded(config, compute, 1)[0]
        return float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))

    gpu = Compute(jnp.bfloat16, decode_rows=8, joined=True)
    assert distance(gpu) <= 1.05 * distance(Compute(jnp.bfloat16))


@every_shape
def test_joined_kernels_are_the_same_network(config: ModelConfig) -> None:
    params = weights_of(config)
    one = joined(params)
    assert sum(x.size for x in jax.tree.leaves(one)) == sum(x.size for x in jax.tree.leaves(params))
    for name in ("wte", "lm_head"):
        assert one[name] is params[name]
    assert one["h_0"]["mlp"] is params["h_0"]["mlp"]
    assert "c_q" in params["h_0"]["attn"]  # still
    assert sorted(one["h_0"]["attn"]) == sorted(
        {"c_qkv", *params["h_0"]["attn"]} - {*"c_q c_k c_v".split()}
    )
    tokens = jnp.asarray(
        np.random.default_rng(2).integers(0, config.vocab_size, (2, 150), np.int32)
    )
    want = forward(params, tokens, config)
    got = forward(one, tokens, config)
    np.testing.assert_allclose(got, want, atol=2e-6 * float(jnp.abs(want).max()), rtol=0)


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
    if compute.joined:
        params = jax.eval_shape(joined, params)
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
    layers = (4 if compute.joined else 6) * config.n_layer
    gates = sum(spec.value_embedding for spec in layer_specs(config))
    assert len(found) == layers + gates + 1
    return [(int(shape.split("x")[0]), kind) for shape, kind in found]


def test_a_gpu_gets_products_of_matrices_summed_in_float32_for_one_row() -> None:
    """Of a vector and a matrix XLA would make rounded products of two numbers, and then sums."""
    compute = dataclasses.replace(
        assumed_compute(ComputeConfig(), backend("gpu")), attention="blocked"
    )
    assert set(weight_products(compute)) == {(8, "f32")}
    assert set(weight_products(compute, batch=9)) == {(9, "f32")}
    plain = dataclasses.replace(compute, decode_rows=1, joined=False)
    assert set(weight_products(plain)) == {(1, "f32")}


def test_a_product_in_half_precision_is_that_in_float32_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((1, 512), (512, 64))
    )
    wide = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    got = np.asarray(matmul(x, kernel), np.float64)
    np.testing.assert_allclose(got, wide, rtol=2.0**-8, atol=1e-5)


def test_only_a_gpu_takes_these_forms_and_always_for_inference() -> None:
    forms = {name: (row.decode_rows, row.joined) for name, row in BACKENDS.items()}
    assert forms == {"cpu": (1, False), "gpu": (8, True), "tpu": (1, False)}
    for choose in (choose_compute, inference_compute):
        here = choose(ComputeConfig(), CLASSIC)
        assert (here.decode_rows, here.joined) == (1, False)
    gpu = choose_compute(ComputeConfig(), CLASSIC, jnp.float32, on=backend("gpu"))
    assert gpu.decode_rows == gpu.unrounded().decode_rows == 8
    assert gpu.joined == gpu.unrounded().joined is True
