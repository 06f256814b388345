"""Small models: both presets, and each switch of ModelConfig alone."""

import dataclasses

import jax

from jaxchat.config import ModelConfig
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
VARIANTS = {
    "classic": CLASSIC,
    "modern": MODERN,
    "as many key heads as query heads": dataclasses.replace(CLASSIC, n_kv_head=4),
    "narrower than the gates": dataclasses.replace(MODERN, n_embd=8, n_kv_head=4),
    **{name: dataclasses.replace(CLASSIC, **{name: value}) for name, value in SWITCHES.items()},
}


def lively_params(config, seed=0):
    """Initial values and noise: what begins at zero would hide all that it multiplies."""
    params = init_params(jax.random.key(seed), config)
    keys = iter(jax.random.split(jax.random.key(seed + 1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape, x.dtype), params)
