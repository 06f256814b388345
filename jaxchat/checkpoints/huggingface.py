"""Models in the files of transformers' class NanoChatForCausalLM, which is our `classic` preset.

    config.json                architecture, and the hash of the tokenizer
    generation_config.json     where an answer ends
    model.safetensors          the tensors; its metadata has the hashes of weights and tokenizer
    tokenizer.json, tokenizer_config.json, chat_template.jinja
    chat_template_training.jinja    for TRL: the same, which marks what is learned
    custom_generate/           transformers' `generate` with the calculator

mlx-lm reads the same files, but with nanochat's names of the tensors (`mlx`).

Its defaults are not ours, so all of them are written down. What the class cannot hold is refused,
never left out: without it the weights would be another model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.checkpoints import calling_generate
from jaxchat.checkpoints.nanochat import nanochat_name
from jaxchat.checkpoints.save import hash_params
from jaxchat.checkpoints.tensors import (
    SAFETENSORS,
    VOCAB_TILE,
    ForeignModel,
    NameOf,
    find_tokenizer,
    from_params,
    read_tensors,
    to_params,
    write_safetensors,
)
from jaxchat.config.derive import windows
from jaxchat.config.schema import MODELS, ModelConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.model.gpt import Params
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.paths import atomic_open, read_json, sha256_file, write_json
from jaxchat.tokenizer import Tokenizer
from jaxchat.tools import calculator

CONFIG = "config.json"
GENERATE = "custom_generate"
ARCHITECTURE = "NanoChatForCausalLM"
TOKENIZER_HASH = "jaxchat_tokenizer_sha256"
WEIGHTS_HASH = "jaxchat_weights_sha256"
STAGE = "jaxchat_stage"
_LAYER = {
    ("attn", "c_q"): "self_attn.q_proj",
    ("attn", "c_k"): "self_attn.k_proj",
    ("attn", "c_v"): "self_attn.v_proj",
    ("attn", "c_proj"): "self_attn.o_proj",
    ("mlp", "c_fc"): "mlp.fc1",
    ("mlp", "c_proj"): "mlp.fc2",
}
# What our model does not have, and the one value at which it makes no difference.
_FIXED = {
    "model_type": "nanochat",
    "hidden_act": "relu2",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "quantization_config": None,
}
# The fields of their configuration that are fields of ours, and the defaults of transformers.
_SIZES = {
    "vocab_size": ("vocab_size", 50_304),
    "hidden_size": ("n_embd", 768),
    "num_hidden_layers": ("n_layer", 12),
    "num_attention_heads": ("n_head", 6),
    "max_position_embeddings": ("sequence_len", 2_048),
}
_READ = {
    *_FIXED, *_SIZES, "intermediate_size", "num_key_value_heads", "head_dim", "rms_norm_eps",
    "rope_parameters", "rope_theta", "final_logit_softcapping", "architectures", TOKENIZER_HASH,
}  # fmt: skip
# What transformers writes into every configuration, and nothing of it changes the logits.
_HARMLESS = set(
    "_name_or_path attention_dropout bos_token_id chunk_size_feed_forward dtype eos_token_id "
    "id2label initializer_range is_encoder_decoder label2id output_attentions "
    "output_hidden_states pad_token_id problem_type return_dict torch_dtype transformers_version "
    "use_cache".split()
)


def huggingface_name(path: tuple[str, ...]) -> str:
    """transformers' name of the parameter at a path of our tree."""
    if path[0] == "wte":
        return "model.embed_tokens.weight"
    if path[0] == "lm_head":
        return "lm_head.weight"
    block, *module, _ = path
    return f"model.layers.{block.removeprefix('h_')}.{_LAYER[module[0], module[1]]}.weight"


def refuse_obstacles(model: ModelConfig) -> None:
    """Raises ConfigError for a model that is not classic, with the settings that prevent it."""
    found = [
        f"model.{name} is true"
        for name in ("value_embeds", "residual_scalars", "smear", "backout")
        if getattr(model, name)
    ]
    if model.qk_scale != 1:
        found.append(f"model.qk_scale is {model.qk_scale}, not 1")
    if min(windows(model)) < model.sequence_len:
        found.append(f"model.window_pattern is {model.window_pattern!r}, not all L")
    if found:
        raise ConfigError(
            f"{ARCHITECTURE} of transformers cannot hold this model: {'; '.join(found)}; only the "
            "classic architecture can be exported to it. --format jaxchat holds every model."
        )


def write_huggingface_model(
    folder: Path,
    params: Params,
    model: ModelConfig,
    tokenizer: Tokenizer,
    stage: str,
    dtype: np.dtype[Any],
    *,
    mlx: bool = False,
) -> None:
    """Writes a classic model into a folder, in `dtype`, for transformers or with `mlx` for mlx-lm.

    Raises ConfigError for all other models.
    """
    refuse_obstacles(model)
    name_of = nanochat_name if mlx else huggingface_name
    tensors = from_params(params, name_of, dtype)
    metadata = {
        "format": "pt",  # transformers wants it; the layout is that of PyTorch
        # of the rounded weights, which an import will find
        WEIGHTS_HASH: hash_params(to_params(tensors, model, name_of)),
        TOKENIZER_HASH: tokenizer.hash,
        STAGE: stage,
    }
    tokens = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": [tokenizer.special("<|assistant_end|>"), tokenizer.bos],
        "pad_token_id": tokenizer.bos,  # padding is masked, so it may be any token
    }
    tokenizer.to_huggingface(folder, model.sequence_len, begins=stage == "base")
    write_safetensors(folder / SAFETENSORS, tensors, metadata)
    generation = {**tokens, "do_sample": False, "max_length": model.sequence_len}
    write_json(folder / "generation_config.json", generation)
    if tokenizer.has_tools and not mlx:
        _write_generate(folder / GENERATE)
    config = {
        "architectures": [ARCHITECTURE],
        **{name: value for name, value in _FIXED.items() if value is not None},
        **{name: getattr(model, ours) for name, (ours, _) in _SIZES.items()},
        "intermediate_size": 4 * model.n_embd,
        "num_key_value_heads": model.n_kv_head,
        "attention_dropout": 0.0,
        "rms_norm_eps": model.norm_epsilon,
        "final_logit_softcapping": model.softcap,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "use_cache": True,
        **tokens,
        "dtype": str(dtype),
        TOKENIZER_HASH: tokenizer.hash,
    }
    write_json(folder / CONFIG, config)


def _write_generate(folder: Path) -> None:
    """Copies `calling_generate` and the calculator, which need nothing else of jaxchat."""
    folder.mkdir()
    own = "from jaxchat.tools.calculator import run_tool"
    for module, name in ((calling_generate, "generate.py"), (calculator, "calculator.py")):
        source = inspect.getsource(module).replace(own, "from .calculator import run_tool")
        with atomic_open(folder / name) as file:
            file.write(source)


def read_huggingface_model(folder: Path, tokenizer_folder: Path | None) -> ForeignModel:
    """The model of a folder in the layout of transformers.

    Raises ArtifactError, in one sentence, for another architecture, and for files that are damaged
    or do not belong together.
    """
    path = folder / CONFIG
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != "nanochat":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ArtifactError(
            f"{path} is of a model of the type {str(kind)[:60]!r}; only transformers' 'nanochat' "
            "can be imported."
        )
    tokenizer, tokenizer_file = find_tokenizer([tokenizer_folder or folder])
    try:
        model = _model(config, tokenizer)
    except (ValueError, TypeError) as error:  # ConfigError, too
        raise ArtifactError(f"{path} cannot be imported: {error}") from error
    params, notes = read_weights(
        folder, model, (huggingface_name, nanochat_name), tokenizer, tokenizer_file, noted=config
    )
    params, model = cut_vocabulary(params, model, tokenizer.vocab_size)
    read = [path, tokenizer_file, *sorted(folder.glob("*.safetensors"))]
    unproven = (
        f"nothing in {folder} says that this tokenizer belongs to these weights: if the answers "
        "are gibberish, it does not."
    )
    return ForeignModel(
        format="transformers",
        params=params,
        model=model,
        tokenizer=tokenizer,
        stage=notes[STAGE] if notes.get(STAGE) in MODELS else "",
        files={file.name: sha256_file(file) for file in read},
        notes=() if notes.get(TOKENIZER_HASH) else (unproven,),
    )


def read_weights(
    folder: Path,
    model: ModelConfig,
    names: Sequence[NameOf],
    tokenizer: Tokenizer,
    tokenizer_file: Path,
    *,
    noted: Mapping[str, Any],
    flip: bool = True,
) -> tuple[Params, Mapping[str, Any]]:
    """The weights in a folder's safetensors, and their metadata over what was `noted` beside them.

    They have one of the `names`, the first unless the embedding has another one's.
    Raises ArtifactError when they are not a model of this architecture, or when they or the
    tokenizer are not those whose hashes are noted.
    """
    tensors, metadata = read_tensors(folder)
    hashes = {str(h) for notes in (noted, metadata) if (h := notes.get(TOKENIZER_HASH))}
    if hashes - {tokenizer.hash}:
        theirs = ", ".join(sorted(h[:12] for h in hashes))
        raise ArtifactError(
            f"the tokenizer in {tokenizer_file} is not the one of the weights in {folder} (its "
            f"hash is {tokenizer.hash[:12]}, theirs {theirs}); get both from one place."
        )
    found = (name_of for name_of in names if name_of(("wte", "embedding")) in tensors)
    try:
        params = to_params(tensors, model, next(found, names[0]), flip=flip)
    except ValueError as error:
        raise ArtifactError(f"the tensors in {folder} cannot be imported: {error}") from error
    notes = {**noted, **metadata}
    if notes.get(WEIGHTS_HASH) is not None and notes[WEIGHTS_HASH] != hash_params(params):
        raise ArtifactError(
            f"the weights in {folder} are damaged or were changed: their hash is not the one they "
            "were exported with; get them again."
        )
    return params, notes


def _model(config: Mapping[str, Any], tokenizer: Tokenizer) -> ModelConfig:
    """The architecture of a config.json. Raises ValueError for what our model is not."""
    unknown = sorted(config.keys() - _READ - _HARMLESS)
    if unknown:
        raise ValueError(f"it has settings that are not known here: {', '.join(unknown[:5])}.")
    for name, value in _FIXED.items():
        if config.get(name, value) != value:
            raise ValueError(f"its {name} is {str(config[name])[:60]!r}; only {value!r} can be.")
    if ARCHITECTURE not in (config.get("architectures") or [ARCHITECTURE]):
        raise ValueError(f"its architecture is {config['architectures']!r}, not {ARCHITECTURE}.")
    sizes = {ours: config.get(name, default) for name, (ours, default) in _SIZES.items()}
    groups, hidden = config.get("num_key_value_heads"), config.get("intermediate_size", 8_192)
    if any(type(size) is not int or size < 1 for size in (*sizes.values(), groups or 1, hidden)):
        raise ValueError("its sizes are not whole numbers of 1 or more.")
    if hidden != 4 * sizes["n_embd"]:
        raise ValueError(
            f"its intermediate_size is {hidden:,}; only 4 times its hidden_size of "
            f"{sizes['n_embd']:,} can be."
        )
    rows, vocab_size = sizes["vocab_size"], tokenizer.vocab_size
    padded = -(-vocab_size // VOCAB_TILE) * VOCAB_TILE
    # our own exports could once have more rows than their tokenizer has ids (`cut_vocabulary`)
    is_ours = rows > padded and config.get(TOKENIZER_HASH) == tokenizer.hash
    if rows not in (vocab_size, padded) and not is_ours:
        raise ValueError(
            f"its vocabulary has {rows:,} tokens, but its tokenizer {vocab_size:,}: they do not "
            "belong together."
        )
    model = ModelConfig(
        **{**sizes, "vocab_size": rows if is_ours else vocab_size},
        n_kv_head=sizes["n_head"] if groups is None else groups,
        rope_base=_rope_base(config),
        softcap=_number(config, "final_logit_softcapping", 15.0),
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
    )
    if (config.get("head_dim") or model.head_dim) != model.head_dim:
        raise ValueError(f"its head_dim is {config['head_dim']}; only {model.head_dim} can be.")
    return model


def _rope_base(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or not rope.keys() <= {"rope_type", "rope_theta"}:
        raise ValueError("its rope_parameters have more than rope_type and rope_theta.")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"its rope_type is {rope['rope_type']!r}; only 'default' can be.")
    return _number({"rope_theta": config.get("rope_theta", 10_000.0), **rope}, "rope_theta", 0.0)


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"its {name} is {str(value)[:60]}; it must be a number greater than 0.")
    return float(value)
