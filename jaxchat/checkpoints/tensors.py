"""Other projects' tensors as our tree of parameters, and back.

Theirs are named by one string and their matrices are [out, in]; ours are named by a path and are
[in, out]. What a parameter is called is the business of each format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.model.gpt import Params, param_shapes

VOCAB_TILE = 64  # to a multiple of which vocabularies are padded
WEIGHTS = tuple(np.dtype(t) for t in (np.float32, np.float16, jnp.bfloat16))  # float32 holds each

NameOf = Callable[[tuple[str, ...]], str]


def to_params(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, name_of: NameOf, *, flip: bool = True
) -> Params:
    """Tensors as our tree of float32 NumPy arrays, padding of the vocabulary removed.

    `flip`: their matrices are [out, in]. Raises ValueError when a tensor is missing, left over, of
    a shape or type that `config` does not have, or holds a number that is not finite.
    """
    left = set(tensors)
    if config.n_layer > len(left):  # before so many layers are looked at
        raise ValueError(f"the config has {config.n_layer:,} layers, for {len(left):,} tensors.")

    def convert(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        keys = tuple(key.key for key in path)
        name = name_of(keys)
        if name not in tensors:
            raise ValueError(
                f"the checkpoint has no tensor {name}; its architecture is not the one of the "
                "config: compare their switches (value_embeds, smear, ...) and depth."
            )
        left.discard(name)
        if tensors[name].dtype not in WEIGHTS:
            raise ValueError(
                f"the tensor {name} is of the type {tensors[name].dtype}; weights are float32, "
                "bfloat16 or float16."
            )
        value = np.asarray(tensors[name], np.float32)
        value = _our_layout(value, keys, config.vocab_size) if flip else value
        if value.shape != leaf.shape:
            raise ValueError(
                f"the tensor {name} is {tensors[name].shape} in the checkpoint, which makes "
                f"{value.shape} here, but the config wants {leaf.shape}."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"the tensor {name} holds numbers that are not finite.")
        return value

    params: Params = jax.tree_util.tree_map_with_path(convert, param_shapes(config))
    if left:
        raise ValueError(
            f"the checkpoint has tensors that the config has no place for: {_some(left)}; "
            "compare their switches (value_embeds, smear, ...) and depth."
        )
    return params


def from_params(
    params: Params, name_of: NameOf, dtype: np.dtype[Any], *, flip: bool = True
) -> dict[str, np.ndarray]:
    """Our tree as tensors of `dtype`; with `flip`, matrices are [out, in]."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = tuple(key.key for key in path)
        value = np.asarray(leaf).astype(dtype, copy=False)
        found[name_of(keys)] = value.T if flip and keys[-1] == "kernel" else value
    return found


def _some(names: set[str]) -> str:
    told = sorted(names)
    return f"{told[:5]} and {len(told) - 5} more" if len(told) > 5 else str(told)


def _our_layout(value: np.ndarray, path: tuple[str, ...], vocab_size: int) -> np.ndarray:
    over_vocabulary = path[-1] == "embedding" or path[0] == "lm_head"
    if over_vocabulary and len(value) == -(-vocab_size // VOCAB_TILE) * VOCAB_TILE:
        value = value[:vocab_size]
    if path[-1] == "kernel":
        return value.T
    if path[-1] in ("smear_lambda", "backout_lambda") and value.shape == (1,):
        return value.reshape(())
    return value
