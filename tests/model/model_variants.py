"""Small models: the presets, and each switch of ModelConfig alone."""

import dataclasses
import functools

import jax
import numpy as np

from jaxchat.config.schema import ModelConfig
from jaxchat.model.gpt import init_params

# A short window is 128, whatever the context up to 512.
CLASSIC = ModelConfig(vocab_size=61, sequence_len=200, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)
SWITCHES = {
    "window_pattern": "SSL",
    "value_embeds": True,
    "residual_scalars": True,
    "smear": True,
    "backout": True,
    "qk_scale": 1.2,
    "rope_base": 100_000.0,
    "softcap": 3.0,
    "init": "modern",
}
MODERN = dataclasses.replace(CLASSIC, **SWITCHES)
SEPTEMBER = dataclasses.replace(MODERN, smear=False, value_embeds_std=1.0, short_window=45)
VARIANTS = {
    "classic": CLASSIC,
    "modern": MODERN,
    "september": SEPTEMBER,
    "short_window": dataclasses.replace(CLASSIC, window_pattern="SSL", short_window=45),
    "as many key heads as query heads": dataclasses.replace(CLASSIC, n_kv_head=4),
    "narrower than the gates": dataclasses.replace(MODERN, n_embd=8, n_kv_head=4),
    **{name: dataclasses.replace(CLASSIC, **{name: value}) for name, value in SWITCHES.items()},
}


def lively_params(config, seed=0):
    """Random values everywhere: what begins at zero would hide all that it multiplies."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(functools.partial(init_params, config=config), jax.random.key(0))
    return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32) + 0.1, shapes)
