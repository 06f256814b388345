"""nanochat's names and layouts of parameters, and ours.

Its matrices are [out, in] and ours [in, out]; its two lone scalars are vectors of one; since 2026
it pads the vocabulary to a multiple of 64, with rows that no token reaches.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxchat.config import ModelConfig
from jaxchat.model.gpt import Params, init_params

VOCAB_TILE = 64  # nanochat's padding of the vocabulary


def nanochat_name(path: tuple[str, ...]) -> str:
    """What nanochat calls the parameter at a path of our tree."""
    if len(path) == 1:  # a scalar, or one scalar a layer
        return path[0]
    *modules, _ = path  # the last is "kernel" or "embedding", always "weight" there
    modules[0] = re.sub(r"^(h|value_embeds)_(\d+)$", r"\1.\2", modules[0])
    trunk = modules[0] == "wte" or modules[0].startswith("h.")
    return ".".join([*(["transformer"] if trunk else []), *modules, "weight"])


def params_from_nanochat(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> Params:
    """nanochat's state dict as our tree of float32 NumPy arrays, padding removed.

    Raises ValueError when a tensor is missing, left over, or of a shape `config` does not have.
    """
    shapes = jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))
    left = set(tensors)

    def convert(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        keys = tuple(key.key for key in path)
        name = nanochat_name(keys)
        if name not in tensors:
            raise ValueError(
                f"the checkpoint has no tensor {name}; its architecture is not the one of the "
                "config: compare their switches (value_embeds, smear, ...) and depth."
            )
        left.discard(name)
        value = _our_layout(np.asarray(tensors[name], np.float32), keys, config.vocab_size)
        if value.shape != leaf.shape:
            raise ValueError(
                f"the tensor {name} is {tensors[name].shape} in the checkpoint, which makes "
                f"{value.shape} here, but the config wants {leaf.shape}."
            )
        return value

    params: Params = jax.tree_util.tree_map_with_path(convert, shapes)
    if left:
        raise ValueError(
            f"the checkpoint has tensors that the config has no place for: {sorted(left)}; "
            "compare their switches (value_embeds, smear, ...) and depth."
        )
    return params


def _our_layout(value: np.ndarray, path: tuple[str, ...], vocab_size: int) -> np.ndarray:
    over_vocabulary = path[-1] == "embedding" or path[0] == "lm_head"
    if over_vocabulary and len(value) == -(-vocab_size // VOCAB_TILE) * VOCAB_TILE:
        value = value[:vocab_size]
    if path[-1] == "kernel":
        return value.T
    if path[-1] in ("smear_lambda", "backout_lambda") and value.shape == (1,):
        return value.reshape(())
    return value
