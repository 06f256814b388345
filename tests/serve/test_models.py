"""Which models are opened, and how many slots they get."""

import numpy as np
import pytest

from jaxchat.config.operations import ServeConfig
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError, ConfigError, OutOfMemory
from jaxchat.serve import models as models_module
from jaxchat.serve.models import choose, dispatch_steps, fit_slots, load_models, slot_bytes
from jaxchat.serve.schema import ApiError

MODEL = ModelConfig(vocab_size=512, sequence_len=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)


def test_models_come_as_they_are_named_and_each_once(trained_home):
    names = [("tiny", "sft"), (None, None), ("tiny", "rl"), ("tiny", None)]
    assert [m.id for m in load_models(trained_home, names, ServeConfig())] == [
        "tiny/sft",
        "tiny/rl",
    ]


def test_a_model_may_have_other_names(trained_home):
    names = [("tiny", "rl", "mychat"), ("tiny", "rl", "gpt-4o"), ("tiny", "sft")]
    first, second = load_models(trained_home, names, ServeConfig())
    assert (first.id, first.aliases) == ("mychat", ("mychat", "gpt-4o"))
    assert first.card(default=True)["jaxchat"]["run"] == "tiny"
    both = [first, second]
    for name in ("mychat", "gpt-4o", "tiny/rl", None, ""):
        assert choose(both, name) is first
    assert choose(both, "tiny/sft") is second
    with pytest.raises(ApiError, match="here are mychat, tiny/sft"):
        choose(both, "tiny")  # which of them?
    assert choose([second], "tiny") is second


def test_a_base_model_is_served_where_it_is_named(trained_home):
    (model,) = load_models(trained_home, [("tiny", "base")], ServeConfig())
    assert (model.id, model.stage) == ("tiny/base", "base")


def test_any_name_may_do(models):
    assert choose(models[:1], "gpt-4o", any_name=True) is models[0]
    with pytest.raises(ApiError, match="no model 'gpt-4o'"):
        choose(models[:1], "gpt-4o")


def test_two_models_of_one_name_are_refused(trained_home):
    for names in (
        [("tiny", "rl", "a"), ("tiny", "sft", "a")],
        [("tiny", "rl", "tiny/sft"), ("tiny", "sft")],
    ):
        with pytest.raises(ConfigError, match="two models have the name"):
            load_models(trained_home, names, ServeConfig())


def test_a_model_has_a_card(models):
    card = models[0].card(default=True)
    facts = card["jaxchat"]
    assert (card["id"], card["owned_by"]) == ("tiny/rl", "jaxchat")
    assert (facts["run"], facts["stage"], facts["default"]) == ("tiny", "rl", True)
    assert (facts["depth"], facts["context"], facts["tools"]) == (2, 512, ["calculator"])
    assert models[0].fingerprint != models[1].fingerprint


def test_a_missing_run_is_an_error(trained_home):
    with pytest.raises(ArtifactError, match="no run 'none'"):
        load_models(trained_home, [("none", None)], ServeConfig())


def test_a_slot_takes_its_keys_and_values():
    keys = 2 * 2 * 2 * 256 * 32 * 4  # k and v, layers, heads, positions, size, bytes
    assert slot_bytes(MODEL, 4) > 3 * keys
    assert slot_bytes(MODEL, 2) < 0.6 * slot_bytes(MODEL, 4)


def test_no_more_slots_are_taken_than_fit():
    each = slot_bytes(MODEL, 4)
    assert fit_slots(MODEL, 8, 4, 100 * each, "a/b") == 8
    assert fit_slots(MODEL, 8, 4, 5 * each, "a/b") == 4
    with pytest.raises(OutOfMemory, match=r"a/b needs .* MB for one conversation"):
        fit_slots(MODEL, 8, 4, each, "a/b")


def test_short_memory_is_reported(trained_home, monkeypatch):
    model = load_models(trained_home, [(None, None)], ServeConfig())[0]
    monkeypatch.setattr(models_module, "free_bytes", lambda: 4 * slot_bytes(model.config, 4))
    messages = []
    (small,) = load_models(trained_home, [(None, None)], ServeConfig(slots=16), messages.append)
    assert small.open_engine().slots == 3
    assert messages == ["memory is short: tiny/rl decodes 3 answers at once, not 16."]
    monkeypatch.setattr(models_module, "free_bytes", lambda: 1.5 * slot_bytes(model.config, 4))
    with pytest.raises(OutOfMemory):  # two models share what is free
        load_models(trained_home, [("tiny", "rl"), ("tiny", "sft")], ServeConfig())


@pytest.mark.parametrize(
    ("megabytes", "steps"), [(1, 8), (6, 8), (7, 8), (13, 4), (21, 4), (26, 2), (51, 1), (4_000, 1)]
)
def test_a_dispatch_of_a_slow_model_is_short(megabytes, steps):
    """The table of embeddings, of which a token reads a row, takes no time."""
    params = {"lm_head": np.zeros(megabytes * 250_000, "float32"), "wte": np.zeros(9, "float32")}
    assert dispatch_steps(params) == steps


@pytest.mark.parametrize(("weights", "steps"), [("float32", 2), ("bf16", 4), ("int8", 8)])
def test_a_dispatch_is_longer_where_weights_are_held_in_fewer_bits(weights, steps):
    params = {"lm_head": np.zeros(26 * 250_000, "float32")}
    assert dispatch_steps(params, weights) == steps


def test_the_engine_holds_weights_as_asked(trained_home):
    (model,) = load_models(trained_home, [("tiny", "sft")], ServeConfig(weights="int8"))
    assert model.open_engine().compute.weights == "int8"
