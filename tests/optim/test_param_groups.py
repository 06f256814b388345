"""The parameter table: every parameter of every model in exactly one row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxchat.config.derive import derive_model
from jaxchat.config.schema import ModelConfig, OptimConfig
from jaxchat.model import gpt
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.optim.param_groups import Group, label_params, parameter_table

SWITCHES = ("value_embeds", "residual_scalars", "smear", "backout")


def labels(model: ModelConfig) -> dict[str, str]:
    """Path -> label, of the model's real parameters."""
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    tree = label_params(shapes, parameter_table(model, OptimConfig()))
    return {
        "/".join(key.key for key in path): label
        for path, label in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def test_the_classic_model_is_matrices_embedding_and_head() -> None:
    found = labels(derive_model(2, "classic", 300))
    assert found["wte/embedding"] == "embedding"
    assert found["lm_head/kernel"] == "head"
    rest = {label for path, label in found.items() if path.startswith("h_")}
    assert rest == {"matrix"}
    assert len(found) == 2 + 2 * 6


def test_the_modern_model_has_every_group() -> None:
    found = labels(derive_model(3, "modern", 300))
    assert (
        found["value_embeds_0/embedding"]
        == found["value_embeds_2/embedding"]
        == ("value_embedding")
    )
    assert found["h_0/attn/ve_gate/kernel"] == "matrix"
    assert found["resid_lambdas"] == "residual"
    assert found["x0_lambdas"] == "x0"
    assert found["smear_gate/kernel"] == found["smear_lambda"] == found["backout_lambda"] == "smear"
    table = parameter_table(derive_model(3, "modern", 300), OptimConfig())
    assert set(found.values()) == {group.label for group in table}


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone_is_covered(switch: str) -> None:
    labels(replace(derive_model(2, "classic", 300), **{switch: True}))


def test_a_parameter_of_no_row_is_named() -> None:
    table = parameter_table(derive_model(2, "classic", 300), OptimConfig())
    params = {"wte": {"embedding": jnp.zeros(2)}, "bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match="the parameter bias is in 0 rows"):
        label_params(params, table)
    with pytest.raises(ValueError, match="the parameter bias is in 0 rows"):
        make_optimizer(derive_model(2, "classic", 300), OptimConfig(), 10).init(params)


def test_a_parameter_of_two_rows_is_named_with_them() -> None:
    table = (Group("a", "w.*", "muon", 0.1), Group("b", ".*te", "adamw", 0.1))
    with pytest.raises(ValueError, match=r"wte is in 2 rows .* \['a', 'b'\]"):
        label_params({"wte": jnp.zeros(2)}, table)


def test_a_row_must_match_the_whole_path() -> None:
    table = parameter_table(derive_model(2, "classic", 300), OptimConfig())
    with pytest.raises(ValueError, match="resid_lambdas_too is in 0 rows"):
        label_params({"resid_lambdas_too": jnp.zeros(2)}, table)
