"""A model of as many ids as its tokenizer has.

A run is refused now whose text has too few pairs to merge for the vocabulary it asks for; before,
it trained a model of more rows than there are ids. What is beyond them stands for nothing: it is
left out wherever such a model speaks or leaves its run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax

from jaxchat.config.schema import ModelConfig


def cut_vocabulary(params: Any, config: ModelConfig, ids: int) -> tuple[Any, ModelConfig]:
    """Parameters of which only the first `ids` rows of every table [V,...] are left, and columns of
    lm_head [D,V], and their configuration; as they are where there are no more.
    """
    if ids >= config.vocab_size:
        return params, config

    def cut(path: tuple[Any, ...], leaf: Any) -> Any:
        names = [key.key for key in path]
        if names[0] == "lm_head":
            return leaf[:, :ids]
        return leaf[:ids] if names[-1] == "embedding" else leaf

    return jax.tree_util.tree_map_with_path(cut, params), replace(config, vocab_size=ids)
