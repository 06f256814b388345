"""Which models are opened, and how many slots they get."""

import pytest

from jaxchat.config.operations import ServeConfig
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError, OutOfMemory
from jaxchat.serve import models as models_module
from jaxchat.serve.models import fit_slots, load_models, slot_bytes

MODEL = ModelConfig(vocab_size=512, sequence_len=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)


def test_models_come_as_they_are_named_and_each_once(trained_home):
    names = [("tiny", "sft"), (None, None), ("tiny", "rl"), ("tiny", None)]
    assert [m.id for m in load_models(trained_home, names, ServeConfig())] == [
        "tiny/sft",
        "tiny/rl",
    ]


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
