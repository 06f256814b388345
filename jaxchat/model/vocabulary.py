"""The vocabulary of a model: which ids it has, and which of them stand for something."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError


def check_ids(ids: np.ndarray, vocab_size: int, source: str) -> None:
    """Raises ArtifactError where ids of any shape, out of `source`, are not all of 0 to V-1.

    A device would not: it takes the last row of a table for every id beyond it.
    """
    if not ids.size:
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab_size:
        raise ArtifactError(
            f"{source} has the id {least if least < 0 else most}, and the vocabulary only "
            f"{vocab_size:,}; make it again with the tokenizer that the model was trained with."
        )


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
