"""Weights where an engine needs them: whole, on one device, in its dtype."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxchat.model.kernels.matmul import Products, round_kernels


def gathered(params: Any) -> Any:
    """Arrays split over a mesh, whole on each of its devices; others as they are.

    With several processes, all of them must call this.
    """

    def gather(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_replicated:
            return x
        assert isinstance(x.sharding, NamedSharding)
        return jax.device_put(x, NamedSharding(x.sharding.mesh, P()))

    return jax.tree.map(gather, params)


def on_device(
    params: Any, device: jax.Device, dtype: DTypeLike, products: Products = "plain"
) -> Any:
    """Arrays on one device, rounded to what they are multiplied in.

    Where that device has them already, in this dtype, nothing is copied.
    """

    def place(x: Any) -> Any:
        if isinstance(x, jax.Array) and len(x.sharding.device_set) > 1:
            shards = {shard.device: shard.data for shard in x.addressable_shards}
            x = shards.get(device, next(iter(shards.values())))
        return jax.device_put(x, device).astype(dtype)

    placed = jax.tree.map(place, gathered(params))
    return round_kernels(placed) if products == "bfloat16" else placed
