"""The mesh: how devices are shared out, and what is refused."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxchat.config.derive import derive_model
from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ConfigError
from jaxchat.model import gpt
from jaxchat.parallel.mesh import (
    batch_shards,
    make_mesh,
    param_specs,
    put_batch,
    row_share,
    spec_of,
)


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


def test_rows_that_do_not_divide_are_refused_with_the_numbers() -> None:
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with pytest.raises(ConfigError, match=r"12 rows does not divide by the 8 .*data=4, fsdp=2"):
        put_batch(mesh, {"tokens": np.zeros((2, 12, 5))})


def processes(grid: list[list[list[int]]]) -> Any:
    """A mesh whose devices are known by their process alone."""
    devices = np.vectorize(lambda n: SimpleNamespace(process_index=n))(np.array(grid))
    shape = dict(zip(("data", "fsdp", "tensor"), devices.shape, strict=True))
    return SimpleNamespace(devices=devices, shape=shape)


@pytest.mark.parametrize(
    ("grid", "here", "share"),
    [
        ([[[0]], [[0]], [[1]], [[1]]], 1, (1, 2)),  # data over both
        ([[[0, 1]], [[0, 1]]], 1, (0, 1)),  # tensor over both: they need the same rows
        ([[[0, 1]], [[2, 3]]], 1, (0, 2)),
        ([[[0, 1]], [[2, 3]]], 2, (1, 2)),
        ([[[1]], [[0]], [[1]], [[0]]], 0, (1, 2)),  # in any order
    ],
)
def test_a_process_reads_the_rows_of_its_own_devices(
    monkeypatch: pytest.MonkeyPatch, grid: Any, here: int, share: tuple[int, int]
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: here)
    assert row_share(processes(grid)) == share


def test_processes_whose_rows_overlap_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data=2, fsdp=1, tensor=3 gives its 2 processes"):
        row_share(processes([[[0, 0, 0]], [[0, 1, 1]]]))


@pytest.mark.parametrize(
    ("config", "logical", "shape", "spec"),
    [
        (MeshConfig(fsdp=2, tensor=2), ("embed", "heads"), (6, 4), P("fsdp", "tensor")),
        (MeshConfig(fsdp=2, tensor=2), ("embed", "heads"), (5, 4), P(None, "tensor")),
        (MeshConfig(fsdp=2, tensor=2), ("embed", "heads"), (6, 3), P("fsdp", None)),
        (MeshConfig(fsdp=2, tensor=2), ("gate", "kv_heads"), (4, 4), P(None, "tensor")),
        (MeshConfig(fsdp=2, tensor=2), ("batch", None), (8, 4), P(("data", "fsdp"), None)),
        (MeshConfig(fsdp=2, tensor=2), ("batch", None), (6, 4), P(None, None)),  # 6 rows over 4
        (MeshConfig(tensor=2), ("batch", "heads"), (4, 2), P("data", "tensor")),
        (MeshConfig(fsdp=8), ("batch", "heads"), (8, 2), P("fsdp", None)),
    ],
)
def test_an_axis_is_split_where_it_divides_and_else_whole(
    config: MeshConfig, logical: tuple[str | None, ...], shape: tuple[int, ...], spec: P
) -> None:
    assert spec_of(make_mesh(config), logical, shape) == spec


@pytest.mark.parametrize("preset", ["classic", "modern"])
def test_every_matrix_of_a_model_is_split_over_fsdp_and_tensor(preset: str) -> None:
    model = derive_model(4, preset, 512)
    params = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def check(path: Any, leaf: Any, spec: Any) -> None:
        name = jax.tree_util.keystr(path)
        if leaf.size > 1_000:
            assert sorted(axis for axis in spec if axis) == ["fsdp", "tensor"], name

    jax.tree_util.tree_map_with_path(check, params, param_specs(mesh, params))
