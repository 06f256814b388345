"""What is exported comes back bit for bit, says what it is, and replaces nothing by mistake."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from finished_run import finish_run, random_params, tiny_tokenizer

from jaxchat.checkpoints import huggingface, native
from jaxchat.checkpoints.huggingface import refuse_obstacles
from jaxchat.checkpoints.save import save_params
from jaxchat.checkpoints.tensors import SAFETENSORS, read_tensors, write_safetensors
from jaxchat.config import loading
from jaxchat.config.derive import derive_model
from jaxchat.config.loading import of_imported
from jaxchat.config.schema import PRESETS, ModelConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.inference.engine import Engine, Request
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.runs import import_run, run_dir, runner
from jaxchat.runs.export_run import FILES, export_model
from jaxchat.tokenizer import Tokenizer, train_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a run of every preset."""
    home = tmp_path_factory.mktemp("home")
    for preset in PRESETS:
        folder = GOLDEN / f"nanochat_checkpoint_{preset}" / "chatsft_checkpoints" / "d2"
        if preset == "september":
            folder = GOLDEN / "nanochat_checkpoint_september" / "experiments/default/d2/chat"
        import_run.make_run(home, preset, import_run.read_model(folder, None, None), "mid", "there")
    return home


@pytest.fixture(scope="module")
def exported(home, tmp_path_factory):
    """Run and format -> a folder; take no part away from it."""
    top = tmp_path_factory.mktemp("exported")
    for run, kind in (
        ("classic", "hf"),
        ("classic", "mlx"),
        ("classic", "jaxchat"),
        ("modern", "jaxchat"),
        ("september", "jaxchat"),
    ):
        export_model(home, run, "mid", top / f"{run}-{kind}", kind=kind, licence="mit")
    return top


def artifact(home, run, stage="mid"):
    return runner.read_done(home / "runs" / run, stage)["results"]["artifact"]


@pytest.mark.parametrize(
    "name",
    ["classic-hf", "classic-mlx", "classic-jaxchat", "modern-jaxchat", "september-jaxchat"],
)
def test_what_is_exported_comes_back_bit_for_bit(home, exported, name, tmp_path):
    run = name.split("-")[0]
    found = import_run.read_model(exported / name, None, None)
    assert (found.stage, found.notes) == ("mid", ())
    config = import_run.make_run(tmp_path, "back", found, found.stage, "there")
    assert artifact(tmp_path, "back") == artifact(home, run)
    assert artifact(tmp_path, "back", "tokenizer") == artifact(home, run, "tokenizer")
    assert config.model == run_dir.read_config(home / "runs" / run).model


def test_our_format_keeps_the_configuration_of_the_run(home, exported):
    found = import_run.read_model(exported / "modern-jaxchat", None, None)
    assert found.config == run_dir.read_config(home / "runs" / "modern")


def test_bfloat16_rounds_and_nothing_else(home, tmp_path):
    export_model(home, "classic", "mid", tmp_path / "half", dtype="bfloat16")
    whole = import_run.read_model(
        GOLDEN / "nanochat_checkpoint_classic/chatsft_checkpoints/d2", None, None
    )
    half = import_run.read_model(tmp_path / "half", None, None)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(jax.numpy.bfloat16), b),
        whole.params,
        half.params,
    )
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_configuration_leaves_nothing_to_transformers_defaults(exported):
    config = json.loads((exported / "classic-hf" / "config.json").read_text())
    wanted = {
        "architectures": ["NanoChatForCausalLM"], "model_type": "nanochat", "vocab_size": 281,
        "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 144,
        "rms_norm_eps": 1.1920929e-07, "final_logit_softcapping": 15.0, "hidden_act": "relu2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "attention_bias": False, "tie_word_embeddings": False, "dtype": "float32",
        "bos_token_id": 272, "eos_token_id": [276, 272], "pad_token_id": 272,
    }  # fmt: skip
    assert wanted.items() <= config.items()
    generation = json.loads((exported / "classic-hf" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["do_sample"]) == ([276, 272], False)
    assert generation["max_length"] == 144, "else an answer ends after 20 tokens"
    tokenizer = json.loads((exported / "classic-hf" / "tokenizer_config.json").read_text())
    assert (tokenizer["model_max_length"], tokenizer["padding_side"]) == (144, "left")
    tensors, metadata = read_tensors(exported / "classic-hf")
    assert len(tensors) == 6 * 2 + 2
    assert metadata["format"] == "pt"  # or transformers does not load it
    assert config["jaxchat_tokenizer_sha256"] == metadata["jaxchat_tokenizer_sha256"]


def test_mlx_has_nanochats_names_and_the_same_numbers(exported):
    ours, _ = read_tensors(exported / "classic-mlx")
    theirs, _ = read_tensors(exported / "classic-hf")
    assert {"transformer.wte.weight", "transformer.h.0.attn.c_q.weight", "lm_head.weight"} <= {
        *ours
    }
    for name, other in (
        ("transformer.wte", "model.embed_tokens"), ("lm_head", "lm_head"),
        ("transformer.h.1.attn.c_proj", "model.layers.1.self_attn.o_proj"),
        ("transformer.h.1.mlp.c_fc", "model.layers.1.mlp.fc1"),
    ):  # fmt: skip
        np.testing.assert_array_equal(ours[f"{name}.weight"], theirs[f"{other}.weight"])
    card = (exported / "classic-mlx" / "README.md").read_text()
    assert "library_name: mlx" in card
    assert "mlx_lm.generate --model classic-mlx" in card


def test_only_the_text_of_a_base_model_begins_with_a_token(home, exported, tmp_path):
    model = import_run.read_model(exported / "classic-hf", None, None)
    import_run.make_run(tmp_path, "base", model, "base", "there")
    export_model(tmp_path, "base", "base", tmp_path / "out")
    steps = [
        json.loads((folder / "tokenizer.json").read_text())["post_processor"]
        for folder in (tmp_path / "out", exported / "classic-hf")
    ]
    assert steps[0]["special_tokens"]["<|bos|>"]["ids"] == [272]
    assert steps[1] is None


def test_the_generation_with_a_calculator_needs_nothing_of_ours(exported):
    """The copy imports and calculates where there is no jaxchat."""
    folder = exported / "classic-hf"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
         "from custom_generate import generate\n"
         "print(generate.run_tool('37 * 24'), 'jaxchat' in sys.modules)", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("888 False\n", "")


def calling_model(home):
    """A run `calls` whose model says, after x, 6*7 to the calculator and then A; its engine."""
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
    config = loading.from_document(
        {
            "run": {"name": "calls", "depth": 1, "preset": "classic"},
            "tokenizer": {"vocab_size": tokenizer.vocab_size},
            "model": {"n_embd": 272, "n_head": 2, "n_kv_head": 2, "sequence_len": 64},
        },
        "calls",
    )  # fmt: skip
    run = finish_run(home, config, tokenizer)
    params = jax.tree.map(np.zeros_like, random_params(0, config))
    params["wte"]["embedding"][:] = np.eye(tokenizer.vocab_size, 272)
    say = [ord("x"), tokenizer.special("<|python_start|>"), *b"6*7"]
    say += [tokenizer.special("<|python_end|>")]
    end = [tokenizer.special("<|output_end|>"), ord("A"), tokenizer.special("<|assistant_end|>")]
    for before, after in itertools.chain(itertools.pairwise(say), itertools.pairwise(end)):
        params["lm_head"]["kernel"][before, after] = 9.0
    save_params(run / "rl" / "model", params, {"stage": "rl"})
    return tokenizer, Engine(params, config.model, tokenizer, slots=1)


@pytest.mark.parametrize("limit", [64, 6, 8, 10])
def test_transformers_calculates_as_our_engine(tmp_path, limit):
    """With transformers and torch, which the tests do not need: padded rows and the call."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tokenizer, engine = calling_model(tmp_path)
    export_model(tmp_path, "calls", "rl", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts = [tokenizer.encode(text) for text in ("abcx", "x")]
    batch = reader.pad({"input_ids": prompts}, return_tensors="pt")
    assert batch["input_ids"][1, 0] == reader.pad_token_id, "padding must stand before a prompt"
    found = model.generate(
        **batch, tokenizer=reader, max_new_tokens=limit,
        custom_generate=str(tmp_path / "out"), trust_remote_code=True,
    )  # fmt: skip
    for prompt, row in zip(prompts, found.tolist(), strict=True):
        job = engine.submit(Request(tuple(prompt), max_tokens=min(limit, 60)))
        while engine.step():
            pass
        ours, answer = list(job.rows[0].tokens), row[batch["input_ids"].shape[1] :]
        assert answer[: len(ours)] == ours
        assert set(answer[len(ours) :]) <= {reader.pad_token_id}


def test_the_card_says_what_it_is_and_how_to_load_it(exported):
    card = (exported / "classic-hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in (
        "license: mit", "26,160 parameters", "imported into jaxchat as the stage mid",
        'from_pretrained("classic-hf")', "vllm serve classic-hf --model-impl transformers",
        "jaxchat import classic-hf", "has not evaluated",
    ):  # fmt: skip
        assert text in card
    assert "transformers" not in (exported / "modern-jaxchat" / "README.md").read_text()


def test_what_transformers_cannot_hold_is_refused_with_its_switches(home, tmp_path):
    with pytest.raises(ConfigError) as caught:
        export_model(home, "modern", "mid", tmp_path / "out")
    for switch in (
        "value_embeds", "residual_scalars", "smear", "backout", "qk_scale is 1.2", "window_pattern"
    ):  # fmt: skip
        assert f"model.{switch}" in str(caught.value)
    assert "--format jaxchat" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_septembers_switches_are_refused_by_transformers_class_too(home, tmp_path):
    with pytest.raises(ConfigError) as caught:
        export_model(home, "september", "mid", tmp_path / "out")
    assert "model.value_embeds is true" in str(caught.value)
    assert "smear" not in str(caught.value)
    config = run_dir.read_config(home / "runs" / "september")
    assert (config.preset, config.tokenizer.tool_tokens) == ("september", False)
    assert "tokenizer.tool_tokens=false" in of_imported(config)


@pytest.mark.parametrize("kind", ["hf", "mlx"])
def test_nothing_of_tools_is_exported_with_a_model_without_them(kind, tmp_path):
    folder = GOLDEN / "nanochat_checkpoint_classic/chatsft_checkpoints/d2"
    found = import_run.read_model(folder, None, None)
    five = Tokenizer(found.tokenizer.tokens, tools=False)
    params, model = cut_vocabulary(found.params, found.model, five.vocab_size)
    bare = dataclasses.replace(found, params=params, model=model, tokenizer=five)
    import_run.make_run(tmp_path, "bare", bare, "sft", "there")
    export_model(tmp_path, "bare", "sft", tmp_path / "out", kind=kind)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "jaxchat:\n" in card
    assert not any(word in card for word in ("calculator", "calls>", "custom_generate"))
    assert not (tmp_path / "out" / "custom_generate").exists()
    back = import_run.read_model(tmp_path / "out", None, None)
    assert (back.tokenizer.hash, back.tokenizer.has_tools) == (five.hash, False)


def test_windows_that_see_everything_are_no_obstacle():
    refuse_obstacles(derive_model(2, "classic", 512))
    model = ModelConfig(sequence_len=100, window_pattern="SL")  # a short window is 128
    refuse_obstacles(model)


def test_a_stage_that_is_not_there_and_a_run_that_is_not(home, tmp_path):
    with pytest.raises(ArtifactError, match=r"no model rl \(complete there: mid\)"):
        export_model(home, "classic", "rl", tmp_path / "out")
    with pytest.raises(ArtifactError, match="no run 'other'"):
        export_model(home, "other", "rl", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_by_force_and_only_an_export(home, tmp_path):
    out = tmp_path / "out"
    export_model(home, "classic", "mid", out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} <= FILES
    (out / "custom_generate" / "mine.py").write_text("mine")
    with pytest.raises(ConfigError, match="not even --force"):
        export_model(home, "classic", "mid", out, force=True)
    (out / "custom_generate" / "mine.py").unlink()
    with pytest.raises(ConfigError, match="--force replaces it"):
        export_model(home, "classic", "mid", out)
    export_model(home, "classic", "mid", out, kind="jaxchat", force=True)
    assert not (out / "config.json").exists()
    (out / "diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not even --force"):
        export_model(home, "classic", "mid", out, force=True)
    (tmp_path / "empty").mkdir()
    export_model(home, "classic", "mid", tmp_path / "empty")


def test_an_export_that_fails_leaves_nothing(home, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        export_model(home, "classic", "mid", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(exported, tmp_path):
    def make(name):
        return Path(shutil.copytree(exported / name, tmp_path / name))

    return make


def refused(folder):
    with pytest.raises(ArtifactError) as caught:
        import_run.read_model(folder, None, None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["classic-hf", "modern-jaxchat"])
def test_a_tokenizer_of_the_same_size_that_is_not_the_models_is_refused(copy, name):
    folder, other = copy(name), train_tokenizer(["quite another text, is it not? " * 9], 281)
    assert other.vocab_size == 281
    for path in (*folder.glob("tokenizer*"), *folder.glob("chat*")):
        path.unlink()
    other.to_huggingface(folder) if name == "classic-hf" else other.save(folder)
    assert "is not the one of the weights" in refused(folder)


@pytest.mark.parametrize("name", ["classic-hf", "modern-jaxchat"])
def test_weights_that_are_not_those_that_were_exported_are_refused(copy, name):
    folder = copy(name)
    path = folder / SAFETENSORS
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert "their hash is not the one" in refused(folder)


def test_what_transformers_fine_tuned_and_saved_again_is_taken(copy):
    """It drops our metadata and keeps what config.json says of the tokenizer."""
    folder = copy("classic-hf")
    tensors = {name: np.array(a) for name, a in read_tensors(folder)[0].items()}
    tensors["lm_head.weight"] += 1
    (folder / SAFETENSORS).unlink()
    write_safetensors(folder / SAFETENSORS, tensors, {"format": "pt"})
    assert import_run.read_model(folder, None, None).notes == ()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"format": "other"}, "no model of this version"), ({"config": {"a": 1}}, "no configuration")],
)
def test_a_description_that_is_none_is_refused(copy, changed, sentence):
    path = copy("modern-jaxchat") / "jaxchat.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert sentence in refused(path.parent)


def with_idle_rows(home):
    """A run as older versions made where the text was short: more rows than the tokenizer has ids.

    The idle rows are by far the likeliest. Its model's parameters, as they are in its folder.
    """
    config = loading.from_document(
        {
            "run": {"name": "idle", "depth": 1, "preset": "classic"},
            "tokenizer": {"vocab_size": 400},
            "model": {"n_embd": 16, "n_head": 2, "n_kv_head": 2, "sequence_len": 64},
        },
        "idle",
    )  # fmt: skip
    run = finish_run(home, config, tiny_tokenizer())
    params = random_params(3, config)
    ids = tiny_tokenizer().vocab_size
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, ids:].set(9.0)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, ids + 1 :].set(-9.0)
    save_params(run / "rl" / "model", params, {"stage": "rl"})
    return config, params


@pytest.mark.parametrize("kind", ["hf", "jaxchat"])
def test_a_model_of_more_rows_than_ids_comes_back_without_them(tmp_path, kind):
    config, params = with_idle_rows(tmp_path)
    ids = tiny_tokenizer().vocab_size
    assert config.model.vocab_size > ids
    export_model(tmp_path, "idle", "rl", tmp_path / "out", kind=kind)
    found = import_run.read_model(tmp_path / "out", None, None)
    assert (found.model.vocab_size, found.tokenizer.vocab_size) == (ids, ids)
    made = import_run.make_run(tmp_path, "back", found, "rl", "there")
    assert (made.model.vocab_size, made.tokenizer.vocab_size) == (ids, ids)
    np.testing.assert_array_equal(
        found.params["wte"]["embedding"], params["wte"]["embedding"][:ids]
    )
    kernel = np.asarray(params["lm_head"]["kernel"])
    np.testing.assert_array_equal(found.params["lm_head"]["kernel"], kernel[:, :ids])


@pytest.mark.parametrize("kind", ["hf", "jaxchat"])
def test_what_older_versions_exported_with_idle_rows_is_taken(tmp_path, kind):
    config, params = with_idle_rows(tmp_path)
    tokenizer = tiny_tokenizer()
    if kind == "hf":
        huggingface.write_huggingface_model(
            tmp_path / "old", params, config.model, tokenizer, "rl", np.dtype(np.float32)
        )
    else:
        native.write_native(tmp_path / "old", params, config, tokenizer, "rl", {})
    found = import_run.read_model(tmp_path / "old", None, None)
    assert found.model.vocab_size == tokenizer.vocab_size
    made = import_run.make_run(tmp_path, "back", found, "rl", "there")
    assert made.model.vocab_size == tokenizer.vocab_size


def test_an_id_that_is_none_is_never_sampled(tmp_path):
    config, params = with_idle_rows(tmp_path)
    tokenizer = tiny_tokenizer()
    engine = Engine(params, config.model, tokenizer, slots=2)
    for temperature in (0.0, 1.0):
        prompt = (tokenizer.bos, *tokenizer.encode("who"))
        request = Request(prompt, max_tokens=20, temperature=temperature, n=2, seed=1)
        job = engine.submit(request)
        while engine.step():
            pass
        said = [token for row in job.rows for token in row.tokens]
        assert said
        assert max(said) < tokenizer.vocab_size
