"""A tiny tokenizer, and a tiny model that likes to call tools and to stop.

An engine of it is 8 slots with dispatches of 4 steps wherever another does not matter: what one
module compiled, the next finds.
"""

import jax
import pytest
from whole_model import shaken

from jaxchat.config.schema import ModelConfig
from jaxchat.model.gpt import init_params
from jaxchat.tokenizer import train_tokenizer

EAGER = ("<|python_start|>", "<|python_end|>", "<|assistant_end|>")


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["12 + 34 = 46, 5 * 6 = 30 and the rest is text. "] * 20, 290)


@pytest.fixture(scope="session")
def config(tokenizer):
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        sequence_len=256,  # so that the short window, 128, is shorter than the longest texts
        n_layer=3,
        n_head=4,
        n_kv_head=2,
        n_embd=32,
        window_pattern="SL",
        smear=True,
        value_embeds=True,
    )


@pytest.fixture(scope="session")
def params(config, tokenizer):
    params = init_params(jax.random.key(0), config)
    params = shaken(params, 1, 0.2)
    eager = [tokenizer.special(name) for name in EAGER]
    kernel = params["lm_head"]["kernel"]
    params["lm_head"] = {"kernel": kernel.at[:, eager].multiply(1.6)}
    return params
