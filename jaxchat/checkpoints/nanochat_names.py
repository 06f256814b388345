"""nanochat's names and layouts of parameters, and ours.

Its matrices are [out, in] and ours [in, out]; its two lone scalars are vectors of one; since 2026
it pads the vocabulary to a multiple of 64, with rows that no token reaches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from jaxchat.checkpoints.tensors import to_params
from jaxchat.config.schema import ModelConfig
from jaxchat.model.gpt import Params


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

    Raises ValueError when a tensor is missing, left over, or not as `config` has it.
    """
    return to_params(tensors, config, nanochat_name)
