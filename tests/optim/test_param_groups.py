"""The parameter table: every parameter of every model in exactly one row."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxchat.config.derive import derive_horizon, derive_model
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


@pytest.mark.parametrize("preset", ["modern", "september"])
def test_rates_of_head_and_embeddings_are_multiplied_by_powers_of_the_width(preset: str) -> None:
    model = derive_model(20, preset, 300)  # width 1280
    optim = derive_horizon(model, preset, 12.0, 2**19).optim
    rates = {group.label: group.rate for group in parameter_table(model, optim)}
    root = (1280 / 768) ** 0.5
    head, tables = (root, root) if preset == "modern" else (1280 / 768, 1.0)
    assert rates["head"] == pytest.approx(0.008 / head)
    assert rates["embedding"] == pytest.approx(0.3 / tables)
    assert rates["value_embedding"] == pytest.approx(0.15 / tables)
    unscaled = {"residual": 0.005, "x0": 0.5, "smear": 0.2, "matrix": 0.02}
    assert {label: rates[label] for label in unscaled} == pytest.approx(unscaled)


@pytest.mark.parametrize("power", ["head_width_power", "embedding_width_power"])
def test_each_power_of_the_width_alone(power: str) -> None:
    model = derive_model(24, "modern", 300)  # width 1536
    before, after = (
        {group.label: group.rate for group in parameter_table(model, optim)}
        for optim in (OptimConfig(), OptimConfig(**{power: 1.0}))
    )
    changed = {"head"} if power == "head_width_power" else {"embedding", "value_embedding"}
    for label, rate in after.items():
        factor = 2**1.5 if label in changed else 1.0
        assert rate == pytest.approx(before[label] * factor), label
