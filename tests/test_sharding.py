"""The mesh: how devices are shared out, and what is refused."""

import jax
import numpy as np
import pytest

from jaxchat.config import ConfigError, MeshConfig
from jaxchat.sharding import batch_shards, make_mesh, put_batch


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_the_data_axis_takes_what_the_others_leave(
    config: MeshConfig, shape: tuple[int, ...]
) -> None:
    mesh = make_mesh(config)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert batch_shards(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("config", "needed"),
    [
        (MeshConfig(data=3), 3),
        (MeshConfig(fsdp=3), 6),  # two groups of three leave two devices idle
        (MeshConfig(fsdp=16), 16),
        (MeshConfig(data=16), 16),
    ],
)
def test_a_mesh_of_other_than_all_devices_is_refused_with_the_numbers(
    config: MeshConfig, needed: int
) -> None:
    with pytest.raises(ConfigError, match=rf"needs {needed} devices, but there are 8"):
        make_mesh(config)


def test_rows_are_split_over_both_batch_axes() -> None:
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    batch = put_batch(mesh, {"tokens": np.zeros((2, 8, 5)), "advantage": np.zeros((2, 8))})
    for name, shape in (("tokens", (2, 1, 5)), ("advantage", (2, 1))):
        shards = batch[name].addressable_shards
        assert {shard.data.shape for shard in shards} == {shape}
        assert {shard.device for shard in shards} == set(jax.devices())
