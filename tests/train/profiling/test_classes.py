"""Operations are classed by what is in them, in programs that XLA compiled here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import MeshConfig
from jaxchat.model.attention import causal_attention
from jaxchat.model.kernels import native
from jaxchat.parallel.mesh import make_mesh
from jaxchat.train.profiling.classes import (
    ATTENTION,
    COLLECTIVE,
    COPY,
    ELEMENTWISE,
    LOOKUP,
    MATMUL,
    Operation,
    Operations,
    class_of_name,
)
from jaxchat.train.profiling.hlo import NO_MODULE, parse


def operations(f: Callable[..., Any], *arguments: jax.Array) -> list[Operation]:
    """What the compiled function runs, loops' bodies included."""
    module = parse(jax.jit(f).lower(*arguments).compile().as_text())
    known = Operations(module)
    silent = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")
    ran = [
        instruction
        for name, computation in module.computations.items()
        for instruction in computation
        if name == module.entry or "body" in name or "region" in name or "wide" in name
    ]
    return [
        known.find(i.name) for i in ran if i.opcode not in silent and not known.is_control(i.name)
    ]


def kinds(f: Callable[..., Any], *arguments: jax.Array) -> set[str]:
    return {operation.kind for operation in operations(f, *arguments)}


X = jnp.ones((16, 16))


@pytest.mark.parametrize(
    ("f", "kind"),
    [
        (lambda x: x @ jnp.sin(x), MATMUL),
        (lambda x: jnp.exp(x) + jnp.sum(x), ELEMENTWISE),
        (lambda x: jnp.concatenate([x.T, x]), COPY),
        (lambda x: x[jnp.argmax(x, axis=0)], LOOKUP),
        (lambda x: jnp.sort(x), LOOKUP),
    ],
)
def test_a_program_has_the_class_of_its_work(f: Callable[..., Any], kind: str) -> None:
    assert kind in kinds(f, X)


def test_a_program_has_no_class_without_its_work() -> None:
    assert kinds(lambda x: jnp.exp(x), X) == {ELEMENTWISE}
    assert kinds(lambda x: x.T.copy(), X) <= {COPY}


def test_products_of_attention_are_not_those_of_its_projections() -> None:
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        q = (x @ w).reshape(2, 64, 2, 8)
        return jnp.sum(causal_attention(q, q, q, window=16) ** 2)

    found = operations(jax.grad(layer, argnums=1), jnp.ones((2, 64, 16)), jnp.ones((16, 16)))
    products = [o for o in found if o.flops]
    attention = [o for o in products if o.kind == ATTENTION]
    assert {o.kind for o in products} == {MATMUL, ATTENTION}
    assert all(o.source.startswith("jaxchat/model/kernels/blocked.py:") for o in attention)
    assert all(o.flops == 2 * 2 * 64 * 16 * 16 for o in products if o.kind == MATMUL)


@pytest.mark.skipif(not native.multiplies(), reason="no AMX")
def test_products_by_our_own_kernels_are_products_and_attention_is_not() -> None:
    def linear(x: jax.Array) -> jax.Array:
        return native.linear(x, (x,))[0]

    def mlp(x: jax.Array) -> jax.Array:
        return native.mlp(x, x, x, 1e-6)

    def muon(x: jax.Array) -> jax.Array:
        return native.orthogonalize(x.astype(jnp.bfloat16)[None], [(1.0, 0.5, 0.1)])

    def attention(q: jax.Array) -> jax.Array:
        return native.native_attention(q, q, q, window=3)

    for product in (linear, mlp, muon):
        assert MATMUL in kinds(product, jnp.ones((64, 64))), product.__name__
    found = kinds(attention, jnp.ones((1, 8, 2, 32)))
    assert ATTENTION in found
    assert MATMUL not in found


def test_a_sum_over_devices_is_a_collective() -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:4])
    summed = jax.shard_map(
        lambda x: jax.lax.psum(x * 2, "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    assert COLLECTIVE in kinds(summed, X)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NTT", MATMUL),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", MATMUL),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", ATTENTION),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", COLLECTIVE),
        ("MemcpyD2D", COPY),
        ("loop_add_fusion_3", ELEMENTWISE),
        ("input_scatter_fusion", LOOKUP),
    ],
)
def test_a_kernel_without_hlo_is_classed_by_its_name(kernel: str, kind: str) -> None:
    assert class_of_name(kernel) == kind
    assert Operations(NO_MODULE).find(kernel) == Operation(kernel, kind)


def test_a_kernel_of_a_gpu_is_found_by_the_name_xla_gives_it() -> None:
    text = jax.jit(lambda x: jnp.exp(x @ x)).lower(X).compile().as_text()
    module = parse(text)
    known = Operations(module)
    name = next(i.name for i in module.computations[module.entry] if module.flops(i))
    assert known.find(name.replace(".", "_").replace("-", "_")) == known.find(name)
    assert known.find(name).flops == 2 * 16**3
