"""Models in the files of transformers' class NanoChatForCausalLM: what `classic` is called there.

    config.json                architecture, and the hash of the tokenizer
    generation_config.json     where an answer ends
    model.safetensors          the tensors; its metadata has the hashes of weights and tokenizer
    tokenizer.json, tokenizer_config.json, chat_template.jinja

Its defaults are not ours, so that all of them are written down. What the class cannot hold is
refused, never left out: without it the weights would be another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.checkpoints import safetensors
from jaxchat.checkpoints.foreign import ForeignModel
from jaxchat.checkpoints.save import hash_params
from jaxchat.checkpoints.tensors import VOCAB_TILE, from_params, to_params
from jaxchat.checkpoints.tokenizers import find_tokenizer
from jaxchat.config.derive import windows
from jaxchat.config.schema import MODELS, ModelConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.model.gpt import Params, cut_vocabulary
from jaxchat.paths import read_json, sha256_file, write_json
from jaxchat.tokenizer import Tokenizer

CONFIG = "config.json"
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
_SHAPE = {
    "vocab_size": 50_304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 8_192,
    "max_position_embeddings": 2_048,
}
_READ = {
    *_FIXED, *_SHAPE, "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters",
    "rope_theta", "final_logit_softcapping", "architectures", TOKENIZER_HASH,
}  # fmt: skip
# What transformers writes into every configuration, and nothing of it changes the logits.
_HARMLESS = set(
    "_name_or_path attention_dropout bos_token_id chunk_size_feed_forward dtype eos_token_id "
    "id2label initializer_range is_encoder_decoder label2id output_attentions "
    "output_hidden_states pad_token_id problem_type return_dict torch_dtype transformers_version "
    "use_cache".split()
)


def huggingface_name(path: tuple[str, ...]) -> str:
    """What transformers calls the parameter at a path of our tree."""
    if path[0] == "wte":
        return "model.embed_tokens.weight"
    if path[0] == "lm_head":
        return "lm_head.weight"
    block, *module, _ = path
    return f"model.layers.{block.removeprefix('h_')}.{_LAYER[module[0], module[1]]}.weight"


def obstacles(model: ModelConfig) -> list[str]:
    """The settings of a model that NanoChatForCausalLM cannot hold."""
    found = [
        f"model.{name} is true"
        for name in ("value_embeds", "residual_scalars", "smear", "backout")
        if getattr(model, name)
    ]
    if model.qk_scale != 1:
        found.append(f"model.qk_scale is {model.qk_scale}, not 1")
    if min(windows(model)) < model.sequence_len:
        found.append(f"model.window_pattern is {model.window_pattern!r}, not all L")
    return found


def refuse_obstacles(model: ModelConfig) -> None:
    """Raises ConfigError, with what stands in the way, for a model that is not classic."""
    if found := obstacles(model):
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
) -> None:
    """Writes a classic model into a folder, in `dtype`. Raises ConfigError for all others."""
    refuse_obstacles(model)
    tensors = from_params(params, huggingface_name, dtype)
    rounded = to_params(tensors, model, huggingface_name)  # what an import will find
    metadata = {
        "format": "pt",  # transformers wants it; the layout is that of PyTorch
        WEIGHTS_HASH: hash_params(rounded),
        TOKENIZER_HASH: tokenizer.hash,
        STAGE: stage,
    }
    tokenizer.to_huggingface(folder)
    safetensors.write_safetensors(folder / safetensors.FILE, tensors, metadata)
    write_json(folder / "generation_config.json", _generation(tokenizer))
    write_json(folder / CONFIG, _config(model, tokenizer, dtype))


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Where text and answers begin and end; what pads is masked, so it may be any."""
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": [tokenizer.special("<|assistant_end|>"), tokenizer.bos],
        "pad_token_id": tokenizer.bos,
    }


def _config(model: ModelConfig, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> dict[str, Any]:
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "nanochat",
        "vocab_size": model.vocab_size,
        "hidden_size": model.n_embd,
        "intermediate_size": 4 * model.n_embd,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_kv_head,
        "max_position_embeddings": model.sequence_len,
        "hidden_act": "relu2",
        "attention_dropout": 0.0,
        "attention_bias": False,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "final_logit_softcapping": model.softcap,
        "tie_word_embeddings": False,
        "use_cache": True,
        **_tokens(tokenizer),
        "dtype": str(dtype),
        TOKENIZER_HASH: tokenizer.hash,
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    return {**_tokens(tokenizer), "do_sample": False}


def read_huggingface_model(folder: Path, tokenizer_folder: Path | None) -> ForeignModel:
    """The model of a folder as transformers writes it.

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
    tensors, metadata = safetensors.read_model(folder)
    try:
        params = to_params(tensors, model, huggingface_name)
    except ValueError as error:
        raise ArtifactError(f"the tensors in {folder} cannot be imported: {error}") from error
    noted = {h for h in (config.get(TOKENIZER_HASH), metadata.get(TOKENIZER_HASH)) if h}
    check_tokenizer(tokenizer, noted, tokenizer_file, folder)
    check_weights(params, metadata, folder)
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
        stage=metadata.get(STAGE, "") if metadata.get(STAGE) in MODELS else "",
        files={file.name: sha256_file(file) for file in read},
        notes=() if noted else (unproven,),
    )


def check_tokenizer(tokenizer: Tokenizer, noted: set[str], file: Path, folder: Path) -> None:
    """Raises ArtifactError when the weights were exported with another tokenizer."""
    if noted and noted != {tokenizer.hash}:
        raise ArtifactError(
            f"the tokenizer in {file} is not the one of the weights in {folder} (its hash is "
            f"{tokenizer.hash[:12]}, theirs {', '.join(sorted(str(h)[:12] for h in noted))}); "
            "get both from one place."
        )


def check_weights(params: Params, metadata: Mapping[str, str], folder: Path) -> None:
    """Raises ArtifactError when the weights are not those whose hash the file notes."""
    noted = metadata.get(WEIGHTS_HASH)
    if noted is not None and noted != hash_params(params):
        raise ArtifactError(
            f"the weights in {folder} are damaged or were changed: their hash is not the one they "
            "were exported with; get them again."
        )


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
    shape = {name: config.get(name, default) for name, default in _SHAPE.items()}
    heads = shape["num_attention_heads"]
    groups = config.get("num_key_value_heads")
    if any(type(size) is not int or size < 1 for size in (*shape.values(), groups or 1)):
        raise ValueError("its sizes are not whole numbers of 1 or more.")
    if shape["intermediate_size"] != 4 * shape["hidden_size"]:
        raise ValueError(
            f"its intermediate_size is {shape['intermediate_size']:,}; only 4 times its "
            f"hidden_size of {shape['hidden_size']:,} can be."
        )
    rows, vocab_size = shape["vocab_size"], tokenizer.vocab_size
    padded = -(-vocab_size // VOCAB_TILE) * VOCAB_TILE
    # our own exports could once have more rows than their tokenizer has ids (`gpt.cut_vocabulary`)
    ours = rows > padded and config.get(TOKENIZER_HASH) == tokenizer.hash
    if rows not in (vocab_size, padded) and not ours:
        raise ValueError(
            f"its vocabulary has {rows:,} tokens, but its tokenizer {vocab_size:,}: they do not "
            "belong together."
        )
    model = ModelConfig(
        vocab_size=rows if ours else vocab_size,
        sequence_len=shape["max_position_embeddings"],
        n_layer=shape["num_hidden_layers"],
        n_head=heads,
        n_kv_head=heads if groups is None else groups,
        n_embd=shape["hidden_size"],
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
