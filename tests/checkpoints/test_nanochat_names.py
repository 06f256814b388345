"""nanochat's tensors as our parameters: names, layouts, and checkpoints of another architecture.

That the numbers then mean the same is tests/model/test_golden_nanochat.py's.
"""

import jax
import numpy as np
import pytest

from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.checkpoints.tensors import to_params
from jaxchat.config.schema import ModelConfig
from jaxchat.model.gpt import init_params

MODEL = ModelConfig(
    vocab_size=70, sequence_len=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16,
    value_embeds=True, residual_scalars=True, smear=True, backout=True,
)  # fmt: skip


def checkpoint(vocabulary: int = 70) -> dict[str, np.ndarray]:
    """Tensors [out, in] of MODEL, every number another."""
    shapes = {
        "transformer.wte.weight": (vocabulary, 16),
        "lm_head.weight": (vocabulary, 16),
        "value_embeds.1.weight": (vocabulary, 8),
        "resid_lambdas": (2,),
        "x0_lambdas": (2,),
        "smear_gate.weight": (1, 16),
        "smear_lambda": (1,),
        "backout_lambda": (1,),
        "transformer.h.1.attn.ve_gate.weight": (2, 12),
    }
    for layer in (0, 1):
        block = f"transformer.h.{layer}"
        shapes |= {f"{block}.attn.c_{name}.weight": (8, 16) for name in "kv"}
        shapes |= {f"{block}.attn.c_{name}.weight": (16, 16) for name in ("q", "proj")}
        shapes |= {f"{block}.mlp.c_fc.weight": (64, 16), f"{block}.mlp.c_proj.weight": (16, 64)}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    return {
        name: np.arange(end - np.prod(shape), end, dtype=np.float32).reshape(shape)
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }


def test_every_parameter_is_found_and_matrices_are_transposed() -> None:
    tensors = checkpoint()
    params = to_params(tensors, MODEL, nanochat_name)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), MODEL))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    up = params["h_1"]["mlp"]["c_fc"]["kernel"]
    assert up[3, 40] == tensors["transformer.h.1.mlp.c_fc.weight"][40, 3]
    assert params["wte"]["embedding"][5, 7] == tensors["transformer.wte.weight"][5, 7]
    assert params["lm_head"]["kernel"][7, 5] == tensors["lm_head.weight"][5, 7]
    assert params["backout_lambda"] == tensors["backout_lambda"][0]


def test_names_are_nanochats_own() -> None:
    paths = jax.tree_util.tree_leaves_with_path(to_params(checkpoint(), MODEL, nanochat_name))
    names = {nanochat_name(tuple(key.key for key in path)) for path, _ in paths}
    assert names == set(checkpoint())


def test_the_padding_of_the_vocabulary_is_cut_off() -> None:
    # 70 rounded up to a multiple of 64
    params = to_params(checkpoint(128), MODEL, nanochat_name)
    assert params["wte"]["embedding"].shape == (70, 16)
    assert params["lm_head"]["kernel"].shape == (16, 70)
    assert params["value_embeds_1"]["embedding"].shape == (70, 8)


def test_another_vocabulary_is_not_taken_for_padding() -> None:
    with pytest.raises(ValueError, match=r"lm_head\.weight is \(192, 16\) .* wants \(16, 70\)"):
        to_params(checkpoint(192), MODEL, nanochat_name)


def test_a_missing_and_a_superfluous_tensor_are_named() -> None:
    tensors = checkpoint()
    del tensors["x0_lambdas"]
    with pytest.raises(ValueError, match=r"has no tensor x0_lambdas; .* compare their switches"):
        to_params(tensors, MODEL, nanochat_name)
    more = {**checkpoint(), "lm_head.bias": np.zeros(70)}
    with pytest.raises(ValueError, match=r"no place for: \['lm_head\.bias'\]"):
        to_params(more, MODEL, nanochat_name)
