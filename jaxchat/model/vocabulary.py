"""The vocabulary of a model, cut to the ids that stand for something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from jaxchat.config.schema import ModelConfig


def cut_vocabulary(params: Any, config: ModelConfig, ids: int) -> tuple[Any, ModelConfig]:
    """Parameters with only the first `ids` rows of every table [V,...] and columns of lm_head
    [D,V], and their configuration; unchanged where there are no more.

    Models of older runs may have more rows than their tokenizer has ids. Those stand for nothing,
    and are left out wherever such a model answers or is exported.
    """
    if ids >= config.vocab_size:
        return params, config

    def cut(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        if names[0] == "lm_head":
            return leaf[:, :ids]
        return leaf[:ids] if names[-1] == "embedding" else leaf

    return jax.tree_util.tree_map_with_path(cut, params), replace(config, vocab_size=ids)
