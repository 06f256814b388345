"""What decoding knows of a position before it has the token there.

Axes: B batch, S slots of a layer, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jax import Array
from jax.typing import DTypeLike

from jaxchat.config.derive import windows
from jaxchat.config.schema import ModelConfig
from jaxchat.model.kv_cache import visible_slots
from jaxchat.model.rope import Rope, rope_table


class View(NamedTuple):
    """Where a token of each row stands, and what it sees of the cache."""

    rope: Rope  # [B,1,1,K/2]
    visible: tuple[Array, ...]  # per layer [B,S] bool


def view_of(position: Array, slots: Sequence[int], config: ModelConfig, dtype: DTypeLike) -> View:
    """The View from `position` [B] in a cache with so many slots in each layer."""
    kinds = list(zip(slots, windows(config), strict=True))
    visible = {kind: visible_slots(position, *kind) for kind in kinds}  # most layers are alike
    rope = rope_table(position[:, None], config, dtype)
    return View(rope, tuple(visible[kind] for kind in kinds))
