"""The part of the model that a kernel works for, by jax's name of its operation and its source."""

from __future__ import annotations

import re

from jaxchat.train.profiling.hlo import Instruction, Module

NORMS, QKV, MLP = "norms, residual", "q, k, v: norm, rope", "relu^2"
LOSS, EMBEDDINGS, OPTIMIZER, REST = "loss", "embeddings", "optimizer, accumulation", "rest"
SAMPLING = "sampling"
PARTS = (NORMS, QKV, MLP, LOSS, EMBEDDINGS, OPTIMIZER, SAMPLING, REST)
# The first whose pattern is found in "/name/of/operation file.py:Function ..." decides; the
# functions are those that led to the kernel's result.
_RULES = (
    (OPTIMIZER, r"/optim/\w+\.py:|step\.py:_update|^\S* \S*step\.py:loss_and_grads\.<locals>\.add"),
    (EMBEDDINGS, r"Embedding\.__call__|_smear|/wte/"),
    (QKV, r"/attn/|/value_embeds|Attention\.__call__|norm_rotated|norm_rope|rope\.py:"),
    (MLP, r"/mlp/|MLP\.__call__"),
    (NORMS, r"rms_norm|Block\.__call__|GPT\.__call__|/h_\d+/"),
    (LOSS, r"/loss\w*\.py:|cross_entropy"),
    (SAMPLING, r"/inference/sampling\.py:"),
    (REST, r""),
)


def part_of(module: Module, one: Instruction) -> str:
    """One of PARTS: that of the kernel's result, whatever else is computed on the way."""
    inner = reversed(list(module.inside(one)))
    source = one if one.frames else next((i for i in inner if i.frames), one)
    where = f"/{source.op_name} " + " ".join(f"{f.file}:{f.function}" for f in source.frames)
    return next(part for part, pattern in _RULES if re.search(pattern, where))
