"""Models of other places become runs: the same logits, and one sentence for every bad folder.

The checkpoints in tests/golden were made by nanochat and transformers themselves, by the scripts
checkpoint.py and transformers_model.py of bench/nanochat_peer.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import save

from jaxchat.checkpoints.tensors import SAFETENSORS, read_tensors, write_safetensors
from jaxchat.checkpoints.torch_file import read_torch
from jaxchat.cli import conversation
from jaxchat.errors import ArtifactError, ConfigError, TokenizerError
from jaxchat.evals.chat import Sampling
from jaxchat.model.gpt import forward
from jaxchat.runs import import_run, run_dir, runner
from jaxchat.runs.opening import eval_model, find_model
from jaxchat.tokenizer import Tokenizer, train_tokenizer
from jaxchat.tokenizer.patterns import SPECIAL_TOKENS

jitted = jax.jit(forward, static_argnums=2)
GOLDEN = Path(__file__).parent.parent / "golden"
NANOCHAT = "chatsft_checkpoints/d2"
FOLDERS = {
    "classic": GOLDEN / "nanochat_checkpoint_classic" / NANOCHAT,
    "modern": GOLDEN / "nanochat_checkpoint_modern" / NANOCHAT,
    "september": GOLDEN / "nanochat_checkpoint_september" / "experiments/default/d2/chat",
    "transformers": GOLDEN / "transformers_nanochat",
}


@pytest.fixture(scope="module")
def models():
    return {name: import_run.read_model(folder, None, None) for name, folder in FOLDERS.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_logits_are_those_of_the_program_that_made_it(models, name):
    found = models[name]
    base = next(GOLDEN / part for part in FOLDERS[name].relative_to(GOLDEN).parts)
    with np.load(base / "logits.npz") as golden:
        for number, text in enumerate(golden["texts"]):
            ids = [found.tokenizer.bos, *found.tokenizer.encode(str(text))]
            ids = ids[: found.model.sequence_len]
            assert ids == golden[f"ids{number}"].tolist()
            expected = golden[f"logits{number}"]
            row = jnp.array([ids + [0] * (found.model.sequence_len - len(ids))])
            logits = jitted(found.params, row, found.model)[0, : len(ids)][-len(expected) :]
            assert np.abs(expected).max() > 8
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_what_the_files_say_of_stage_and_architecture(models):
    assert [found.stage for found in models.values()] == ["sft", "sft", "sft", ""]
    assert [found.preset for found in models.values()][:3] == ["classic", "modern", "september"]
    assert "November 2025" in models["classic"].format
    assert "July 2026" in models["modern"].format
    assert "September 2026" in models["september"].format
    assert models["modern"].model.window_pattern == "SL"
    assert models["september"].model.short_window == 128
    assert not models["september"].model.smear
    assert not models["september"].tokenizer.has_tools
    assert models["transformers"].model.norm_epsilon == 1e-6
    assert models["transformers"].model.rope_base == 5_000
    assert set(models["classic"].files) == {
        "model_000007.pt", "meta_000007.json", "tokenizer.pkl"
    }  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_an_imported_model_opens_as_a_run(models, name, tmp_path):
    found = models[name]
    import_run.make_run(tmp_path, "mine", found, "sft", "somewhere")
    if name == "classic":  # for the others it would only compile again
        loaded = conversation.load(tmp_path, "mine", None, Sampling(max_tokens=5))
        assert loaded.stage == "sft"
        list(loaded.ask("the cat"))
        assert loaded.last.completion_tokens
    opened = eval_model(*find_model(tmp_path, None, "sft"))
    assert opened.config == found.model
    np.testing.assert_array_equal(
        opened.params["wte"]["embedding"], found.params["wte"]["embedding"]
    )
    record = runner.read_done(tmp_path / "runs" / "mine", "sft")
    assert record["results"]["imported"] == {
        "format": found.format, "from": "somewhere", "files": found.files
    }  # fmt: skip
    with pytest.raises(ConfigError, match="already"):
        import_run.make_run(tmp_path, "mine", found, "sft", "somewhere")


def test_weights_that_were_exchanged_are_noticed(models, tmp_path):
    import_run.make_run(tmp_path, "mine", models["classic"], "sft", "somewhere")
    run = run_dir.find(tmp_path, "mine")
    config = json.loads((run / "config.json").read_text())
    config["imported"]["weights"] = "0" * 64
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="no model there is complete"):
        conversation.load(tmp_path, "mine", None, Sampling(256))


# ---------------------------------------------------------------------------- bad folders


@pytest.fixture
def nanochat(tmp_path):
    """A copy of the classic checkpoint to take apart."""
    shutil.copytree(GOLDEN / "nanochat_checkpoint_classic", tmp_path / "base")
    return tmp_path / "base" / NANOCHAT


@pytest.fixture
def hugging(tmp_path):
    """A copy of transformers' model to take apart, in one file."""
    folder = tmp_path / "hugging"
    shutil.copytree(FOLDERS["transformers"], folder)
    tensors, _ = read_tensors(FOLDERS["transformers"])
    for path in folder.glob("model*"):
        path.unlink()
    write_safetensors(folder / SAFETENSORS, tensors, {})
    return folder


def refused(folder, step=None, tokenizer=None, error=ArtifactError):
    """The one sentence with which a folder is refused."""
    with pytest.raises(error) as caught:
        import_run.read_model(folder, step, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_tensors(folder, change):
    """Changes the tensors of a folder of either kind."""
    if (path := folder / SAFETENSORS).exists():
        tensors = {name: np.array(array) for name, array in read_tensors(folder)[0].items()}
        change(tensors)
        path.unlink()
        write_safetensors(path, tensors, {})
    else:
        path = folder / "model_000007.pt"
        tensors = {name: np.array(array) for name, array in read_torch(path).items()}
        change(tensors)
        save(path, tensors)


def change_json(path, **changed):
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def without(name):
    return lambda tensors: tensors.pop(name)


def with_(name, value):
    return lambda tensors: tensors.update({name: value})


def poisoned(name):
    def change(tensors):
        tensors[name].flat[3] = np.nan

    return change


BAD = [
    (without("lm_head.weight"), "has no tensor lm_head.weight"),
    (with_("lm_head.bias", np.zeros(3, np.float32)), "no place for: ['lm_head.bias']"),
    (with_("lm_head.weight", np.zeros((281, 25), np.float32)), "the config wants (24, 281)"),
    (with_("lm_head.weight", np.zeros((281, 24))), "is of the type float64"),
    (with_("lm_head.weight", np.zeros((281, 24), int)), "is of the type int64"),
    (poisoned("lm_head.weight"), "not finite"),
]


@pytest.mark.parametrize("kind", ["nanochat", "hugging"])
@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_tensors_that_are_not_the_models_are_refused(request, kind, change, sentence):
    folder = request.getfixturevalue(kind)
    change_tensors(folder, change)
    assert sentence in refused(folder)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model_type": "llama"}, "of the type 'llama'"),
        ({"model_type": ...}, "of the type 'None'"),
        ({"architectures": ["Other"]}, "not NanoChatForCausalLM"),
        ({"auto_map": {"AutoModel": "code.py"}}, "not known here: auto_map"),
        ({"value_embeds": True}, "not known here: value_embeds"),
        ({"attention_bias": True}, "attention_bias is 'True'; only False"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"factor": 2}}, "more than rope_type"),
        ({"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        ({"rms_norm_eps": "1"}, "rms_norm_eps"),
        ({"intermediate_size": ...}, "intermediate_size is 8,192; only 4 times"),
        ({"head_dim": 16}, "head_dim is 16; only 8"),
        ({"num_attention_heads": 5}, "multiple of the number of heads"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers, for"),
        ({"num_hidden_layers": 3}, "has no tensor model.layers.2."),
        ({"hidden_size": -1}, "whole numbers of 1 or more"),
        ({"vocab_size": 300}, "has 300 tokens, but its tokenizer 281"),
        ({"vocab_size": 280}, "has 280 tokens, but its tokenizer 281"),
    ],
)
def test_other_architectures_are_refused(hugging, changed, sentence):
    change_json(hugging / "config.json", **changed)
    assert sentence in refused(hugging)


def test_files_that_are_cut_off_or_missing_are_refused(hugging, nanochat):
    for path in (hugging / SAFETENSORS, nanochat / "model_000007.pt"):
        path.write_bytes(path.read_bytes()[:-100])
        assert "damaged, cut off" in refused(path.parent)
    (hugging / SAFETENSORS).unlink()
    assert "does not exist" in refused(hugging)
    (nanochat / "meta_000007.json").unlink()
    assert "does not exist" in refused(nanochat)
    (hugging / "config.json").write_text("{")
    assert "damaged" in refused(hugging)


def test_folders_without_a_model_say_what_is_looked_for(nanochat, tmp_path):
    base = nanochat.parent.parent
    assert f"such as {nanochat}" in refused(base)
    assert "is no folder" in refused(tmp_path / "nowhere")
    assert "it has 7" in refused(nanochat, step=3)
    refused(FOLDERS["transformers"], step=3, error=ConfigError)


def test_the_last_step_is_taken_or_the_one_that_is_named(nanochat):
    for name in ("model_000007.pt", "meta_000007.json"):
        shutil.copy(nanochat / name, nanochat / name.replace("000007", "000010"))
    change_tensors(nanochat, with_("lm_head.weight", np.ones((281, 24), np.float32)))
    assert "model_000010.pt" in import_run.read_model(nanochat, None, None).files
    assert import_run.read_model(nanochat, 7, None).params["lm_head"]["kernel"].max() == 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"rope_base": 1e6}, "does not know 'rope_base'"),
        ({"n_layer": "2"}, "needs a whole n_layer"),
        ({"n_head": ...}, "needs a whole n_head"),
        ({"n_layer": 10**9}, "1,000,000,000 layers"),
        ({"n_head": 7}, "multiple of the number of heads"),
        ({"window_pattern": "SSSL"}, "which November 2025 did not have"),
    ],
)
def test_fields_of_other_versions_of_nanochat_are_refused(nanochat, changed, sentence):
    meta = nanochat / "meta_000007.json"
    config = json.loads(meta.read_text())["model_config"] | changed
    change_json(meta, model_config={k: v for k, v in config.items() if v is not ...})
    assert sentence in refused(nanochat)


def test_versions_between_the_two_ages_are_refused_with_what_they_have(nanochat):
    change_tensors(nanochat, with_("resid_lambdas", np.ones(2, np.float32)))
    sentence = refused(nanochat)
    assert "it has resid_lambdas, but not x0_lambdas, smear_gate.weight" in sentence


@pytest.fixture
def september(tmp_path):
    """A copy of September's base directory; its checkpoint."""
    shutil.copytree(GOLDEN / "nanochat_checkpoint_september", tmp_path / "base")
    return tmp_path / "base" / "experiments/default/d2/chat"


def test_smear_with_a_window_in_the_configuration_is_between_the_ages(september):
    change_tensors(september, with_("smear_lambda", np.ones(1, np.float32)))
    assert "but not smear_gate.weight" in refused(september)


def test_septembers_tokenizer_is_that_of_the_experiments_dataset(september):
    datasets = september.parents[3] / "datasets"
    (datasets / "climbmix").rename(datasets / "own")
    assert "climbmix/tokenizer" in refused(september)
    (september.parents[1] / "meta.json").write_text('{"dataset": "own"}')
    assert import_run.read_model(september, None, None).tokenizer.vocab_size == 281


def test_names_of_compiled_models_are_understood(nanochat):
    def compiled(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    change_tensors(nanochat, compiled)
    assert import_run.read_model(nanochat, None, None).model.n_layer == 2


# ---------------------------------------------------------------------------- tokenizers


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("value", [Evil(), {"mergeable_ranks": Evil()}, "gpt2", {"a": 1}])
def test_a_malicious_tokenizer_is_refused_and_not_executed(nanochat, monkeypatch, value, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = nanochat.parent.parent / "tokenizer" / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(value))
    assert "with --tokenizer" in refused(nanochat, error=TokenizerError)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"pat_str": b"."}, "fields of other types"),
        ({"mergeable_ranks": {b"a": 1.5}}, "not names and numbers"),
        ({"mergeable_ranks": {"a": 1}}, "not names and numbers"),
        ({"mergeable_ranks": {b"a": 5}}, "are not 0, 1, 2"),
        ({"special_tokens": {"<|endoftext|>": 256}}, "special tokens are not"),
        (
            {"special_tokens": {n: 257 + i for i, n in enumerate(SPECIAL_TOKENS)}},
            "numbers or order",
        ),
        ({"pat_str": "("}, "cannot be used"),
        ({"more": 1}, "holds no tiktoken.Encoding"),
    ],
)
def test_odd_encodings_are_refused(nanochat, monkeypatch, changed, sentence):
    import tiktoken.core

    class Fake:
        __module__, __qualname__ = "tiktoken.core", "Encoding"

        def __getstate__(self):
            return {
                "name": "x", "pat_str": ".",
                "mergeable_ranks": {bytes([byte]): byte for byte in range(256)},
                "special_tokens": {n: 256 + i for i, n in enumerate(SPECIAL_TOKENS)},
            } | changed  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(tiktoken.core, "Encoding", Fake)
        data = pickle.dumps(Fake())
    (nanochat.parent.parent / "tokenizer" / "tokenizer.pkl").write_bytes(data)
    assert sentence in refused(nanochat, error=TokenizerError)


def test_a_tokenizer_of_another_size_does_not_match(nanochat, hugging, tmp_path):
    train_tokenizer(["other words than those"] * 9, 270).save(tmp_path / "other")
    for folder in (nanochat, hugging):
        assert "belong together" in refused(folder, tokenizer=tmp_path / "other")


def test_without_a_tokenizer_one_is_asked_for(nanochat, hugging):
    shutil.rmtree(nanochat.parent.parent / "tokenizer")
    assert "name the folder that has it with --tokenizer" in refused(nanochat)
    (hugging / "tokenizer.json").unlink()
    assert "with --tokenizer" in refused(hugging)


def test_a_tokenizer_elsewhere_may_be_named(nanochat, models, tmp_path):
    models["classic"].tokenizer.save(tmp_path / "ours")
    models["classic"].tokenizer.to_huggingface(tmp_path / "theirs")
    shutil.rmtree(nanochat.parent.parent / "tokenizer")
    for name in ("ours", "theirs"):
        found = import_run.read_model(nanochat, None, tmp_path / name)
        assert found.tokenizer.hash == models["classic"].tokenizer.hash
    assert isinstance(found.tokenizer, Tokenizer)
