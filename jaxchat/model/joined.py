"""Queries, keys and values as one product: their kernels beside one another, for inference."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

JOINED = "c_qkv"  # c_q, c_k and c_v beside one another


def join_kernels(part: Any) -> Any:
    """A layer's parameters, with one kernel c_qkv [D,(H+2G)*K] for c_q, c_k and c_v; others as they
    are. The same network, which makes one product of three.
    """
    if not (isinstance(part, dict) and "attn" in part):
        return part
    attention = dict(part["attn"])
    kernels = [attention.pop(name)["kernel"] for name in ("c_q", "c_k", "c_v")]
    attention[JOINED] = {"kernel": jnp.concatenate(kernels, axis=1)}
    return {**part, "attn": attention}
