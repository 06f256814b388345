"""What is different from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass

from jaxchat.config import ModelConfig
from jaxchat.scaling import has_value_embedding, windows


@dataclass(frozen=True)
class LayerSpec:
    """What one layer is like."""

    window: int  # keys it sees to the left of its own
    value_embedding: bool


def layer_specs(config: ModelConfig) -> tuple[LayerSpec, ...]:
    """One LayerSpec a layer, first to last."""
    return tuple(
        LayerSpec(
            window=window,
            value_embedding=config.value_embeds and has_value_embedding(layer, config.n_layer),
        )
        for layer, window in enumerate(windows(config))
    )
