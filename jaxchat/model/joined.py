"""Parameters laid out for inference: the three projections of attention as one matrix."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

PARTS = ("c_q", "c_k", "c_v")


def join_projections(params: Any) -> Any:
    """`gpt` parameters with c_q, c_k and c_v of each layer side by side, as c_qkv [D,(H+2G)*K].

    One product instead of three, of which each is too small to fill a processor where few rows are
    decoded.
    """
    if not isinstance(params, dict):
        return params
    if not all(name in params for name in PARTS):
        return {name: join_projections(part) for name, part in params.items()}
    kernels = [params[name]["kernel"] for name in PARTS]
    rest = {name: part for name, part in params.items() if name not in PARTS}
    return {**rest, "c_qkv": {"kernel": jnp.concatenate(kernels, axis=1)}}
