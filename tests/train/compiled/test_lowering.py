"""Every path of an accelerator is traced and lowered for it, on whatever machine this is.

No wheel is needed and nothing is compiled: what is found is what JAX refuses while it traces.
"""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxchat.config.schema import ComputeConfig, MeshConfig, ModelConfig, OptimConfig
from jaxchat.inference import jitted
from jaxchat.model import gpt
from jaxchat.model.backend import BACKENDS, Compute
from jaxchat.model.capabilities import assumed_compute
from jaxchat.model.kernels.matmul import dot
from jaxchat.model.kv_cache import init_cache
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train.step import make_train_step, state_shapes

CLASSIC = ModelConfig(
    vocab_size=256, sequence_len=128, n_layer=2, n_head=1, n_kv_head=1, n_embd=128
)
MODERN = dataclasses.replace(
    CLASSIC, window_pattern="SL", value_embeds=True, residual_scalars=True, smear=True,
    backout=True, qk_scale=1.2, softcap=3.0, init="modern",
)  # fmt: skip
SHAPES = {"classic": CLASSIC, "modern": MODERN}
PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}  # as JAX names what is lowered for, and our backends
every_platform = pytest.mark.parametrize("platform", PLATFORMS)
every_shape = pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX asks for cuDNN's version while it traces, and none is installed here.

    Its own attention mixes dtypes, which other tests forbid.
    """
    private = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(private, "check_cudnn_version", lambda: 92_300)
    with jax.numpy_dtype_promotion("standard"):
        yield


def compute_of(platform: str, **switches: Any) -> Compute:
    compute = assumed_compute(ComputeConfig(**switches), BACKENDS[PLATFORMS[platform]])
    return dataclasses.replace(compute, chunk_rows=64)


def step_text(
    model: ModelConfig, platform: str, *, devices: int = 2, extra: str = "", **switches: Any
) -> str:
    """What a step of two micro-batches is given to the compiler of the platform."""
    compute = compute_of(platform, **switches)
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    optimizer = make_optimizer(model, OptimConfig(), 10, muon_dtype=compute.muon_dtype)
    shape = (2, devices, model.sequence_len + 1)
    batch = {
        "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
        "mask": jax.ShapeDtypeStruct(shape, jnp.float32),
    }
    if extra:
        batch[extra] = jax.ShapeDtypeStruct(shape[:2], jnp.float32)
    step: Any = make_train_step(model, optimizer, mesh, compute)
    traced = step.trace(state_shapes(model, optimizer, mesh), batch)
    return str(traced.lower(lowering_platforms=(platform,)).as_text())


def attention_calls(text: str) -> int:
    return text.count("__cudnn$fmha")


@every_platform
@every_shape
def test_a_step_lowers(model: ModelConfig, platform: str) -> None:
    text = step_text(model, platform)
    # A layer's forward and backward calls; layers of one window share a function
    assert attention_calls(text) >= (2 if platform == "cuda" else 0)
    assert "bf16" in text


@every_platform
def test_a_step_of_reinforcement_learning_lowers(platform: str) -> None:
    assert step_text(CLASSIC, platform, extra="advantage")


def test_a_step_in_fp8_lowers_and_its_products_are_in_fp8() -> None:
    text = step_text(CLASSIC, "cuda", fp8=True)
    products = [line for line in text.splitlines() if "dot_general" in line and "xf8E" in line]
    forward = [line for line in products if "f8E5M2" not in line]
    layers = len(forward) - 1  # the head's gradients are products of bfloat16
    assert len(products) == 3 * layers + 1 > 1, "two products backward for one forward"


def test_products_are_transposed_in_memory_on_a_cpu_alone() -> None:
    """It is decided when a program is lowered, so that one traced here is a GPU's there."""
    half = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    traced = jax.jit(lambda a: dot(a, a, over=(-2, -2))).trace(half)
    barriers = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text().count("barrier")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert barriers == {"cpu": 1, "cuda": 0, "tpu": 0}


@every_platform
@every_shape
def test_reading_a_prompt_and_decoding_lower(model: ModelConfig, platform: str) -> None:
    compute = dataclasses.replace(compute_of(platform), fused=False)
    params = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(jnp.bfloat16), p),
                            gpt.param_shapes(model))  # fmt: skip
    prompt = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    length = jax.ShapeDtypeStruct((1,), jnp.int32)
    traced = jitted.prefill.trace(params, prompt, length, config=model, compute=compute)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert attention_calls(text) >= (1 if platform == "cuda" else 0)
    cache = jax.eval_shape(lambda: init_cache(model, 2, 64, jnp.bfloat16))
    slots = jax.ShapeDtypeStruct((2, len(jitted.SLOT) + 4), jnp.int32)
    decoded = jitted.decode_steps.trace(
        params, cache, slots, config=model, compute=compute, pauses=(1,), truncate=True,
        alternatives=2,
    )  # fmt: skip
    assert decoded.lower(lowering_platforms=(platform,)).as_text()
