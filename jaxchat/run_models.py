"""The models that a run has made: their weights, and what decodes with them (layer 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxchat.checkpoints.save import load_params
from jaxchat.config.machine import lanes
from jaxchat.config.schema import ModelConfig
from jaxchat.inference.replicas import make_service
from jaxchat.inference.service import Service
from jaxchat.model import gpt
from jaxchat.model.backend import compute_dtype
from jaxchat.model.kernels.matmul import Products
from jaxchat.pipeline import Context
from jaxchat.run_inputs import tokenizer_of


def abstract_params(model: ModelConfig) -> Any:
    """Shapes and types of a model's parameters, on one device."""
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def load_model(root: Path, stage: str, model: ModelConfig) -> Any:
    """The weights a stage of the run in `root` made."""
    return load_params(root / stage / "model", abstract_params(model))[0]


def make_engine(
    context: Context, params: Any, *, slots: int = 0, products: Products = "plain"
) -> Service:
    """What evaluates and samples, with `slots` on each device or lane (0: as configured)."""
    config = context.config
    return make_service(
        params,
        config.model,
        tokenizer_of(context),
        slots=slots or config.eval.slots,
        lanes=lanes(),
        dtype=compute_dtype(),
        products=products,
    )
