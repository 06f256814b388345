"""A function cut over the mesh: which part of its arrays each device computes with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from whole_model import features

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.model import gpt
from jaxchat.model.attention import causal_attention
from jaxchat.model.backend import Compute
from jaxchat.parallel.mesh import make_mesh, sharding
from jaxchat.parallel.spmd import mesh_compute, over_rows

MODEL = ModelConfig(
    vocab_size=64, sequence_len=16, n_layer=1, n_head=8, n_kv_head=4, n_embd=64
)  # fmt: skip


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (2, 1, 4)], ids=str)
def test_attention_sees_the_rows_and_heads_of_its_own_device(shape: tuple[int, int, int]) -> None:
    """A kernel that the compiler cannot split, as cuDNN's, would be computed whole everywhere."""
    seen = set()

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, window: int) -> jax.Array:
        seen.add((q.shape[0], q.shape[2], k.shape[2]))
        return causal_attention(q, k, v, window=window, implementation="blocked")

    mesh = make_mesh(MeshConfig(*shape))
    compute = mesh_compute(mesh, MODEL, Compute(attention=attention))
    params = gpt.init_params(jax.random.key(0), MODEL)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    tokens = np.random.default_rng(0).integers(0, 64, (8, 16), np.int32)

    def local(params: gpt.Params, tokens: jax.Array) -> jax.Array:
        return gpt.features(params, tokens[0], MODEL, compute)[None]

    rows = sharding(mesh, "accumulation", "batch").spec
    specs = jax.tree.map(lambda _: P(), params)
    found = jax.jit(over_rows(local, mesh, specs, rows))(params, tokens[None])[0]
    assert seen == {(8 // (shape[0] * shape[1]), 8 // shape[2], 4 // shape[2])}
    np.testing.assert_allclose(found, features(params, tokens, MODEL), atol=1e-5)
