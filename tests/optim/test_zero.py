"""The optimizer's work split over a mesh and put together again: nothing is lost, nothing twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxchat.config.schema import MeshConfig, ModelConfig
from jaxchat.model import gpt
from jaxchat.optim.zero import ZeroLayout
from jaxchat.parallel.mesh import batch_shards, make_mesh

# Three layers, so that the stacks are filled up; scalars, which are whole everywhere.
MODEL = ModelConfig(
    vocab_size=64, sequence_len=16, n_layer=3, n_head=8, n_kv_head=8, n_embd=64,
    value_embeds=True, residual_scalars=True,
)  # fmt: skip
SHAPES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]
on_every_mesh = pytest.mark.parametrize("shape", SHAPES, ids=str)


def layout_and_params(shape: tuple[int, int, int]) -> tuple[Mesh, ZeroLayout, Any]:
    mesh, rng = make_mesh(MeshConfig(*shape)), np.random.default_rng(0)
    shapes = gpt.param_shapes(MODEL)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    return mesh, ZeroLayout.of_model(mesh, MODEL), params


def on_devices(function: Any, mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    return jax.jit(
        jax.shard_map(
            function, mesh=mesh, in_specs=(in_specs,), out_specs=out_specs, check_vma=False
        )
    )


def assert_same(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


@on_every_mesh
def test_parameters_are_gathered_whole_and_their_shards_put_together(
    shape: tuple[int, int, int],
) -> None:
    mesh, zero, params = layout_and_params(shape)
    assert_same(on_devices(zero.gather, mesh, zero.stored, zero.gathered)(params), params)

    def there_and_back(stored: Any) -> Any:
        return zero.all_gather_updates(zero.local_shard(zero.gather(stored)))

    assert_same(on_devices(there_and_back, mesh, zero.stored, zero.stored)(params), params)


@on_every_mesh
def test_gradients_are_summed_over_the_devices_that_have_rows(shape: tuple[int, int, int]) -> None:
    mesh, zero, grads = layout_and_params(shape)

    def summed(grads: Any) -> Any:
        share = 1 + jax.lax.axis_index(("data", "fsdp"))  # each device's own
        own = jax.tree.map(lambda x: x * share.astype(jnp.float32), grads)
        return zero.all_gather_updates(zero.reduce_scatter(own))

    total = sum(range(1, batch_shards(mesh) + 1))
    got = on_devices(summed, mesh, zero.gathered, zero.stored)(grads)
    assert_same(got, jax.tree.map(lambda x: x * total, grads))


@on_every_mesh
def test_the_norm_is_that_of_the_whole(shape: tuple[int, int, int]) -> None:
    mesh, zero, params = layout_and_params(shape)

    def norm(gathered: Any) -> Any:
        return zero.norm(zero.local_shard(gathered))

    got = on_devices(norm, mesh, zero.gathered, P())(params)
    np.testing.assert_allclose(got, optax.tree.norm(params), rtol=1e-5)


@on_every_mesh
def test_each_device_holds_its_share_of_the_work(shape: tuple[int, int, int]) -> None:
    """Of the matrices, which are nearly all: the filling of the stacks aside, an eighth."""
    mesh, zero, params = layout_and_params(shape)
    view = jax.eval_shape(zero.view, params)
    specs = jax.tree.map(lambda part: part.spec, zero.partitions)
    held = on_devices(zero.local_shard, mesh, zero.gathered, specs)(params)
    sizes = jax.tree.map(lambda x: x.addressable_shards[0].data.size, held)
    whole = jax.tree.map(lambda x: x.size, view)
    assert sum(jax.tree.leaves(sizes["h"])) * 8 == sum(jax.tree.leaves(whole["h"]))
