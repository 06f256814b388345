"""nanochat's own checkpoints, meta_STEP.json and model_STEP.pt, of the versions of the presets.

Its configuration has sizes only; the rest of the architecture is in its code, whose version is
recognized by the tensors: those of November 2025 have none of the additions of 2026, those of July
2026 have them all. September 2026 has no smear, and its configuration says how long a short window
is. Versions between are refused, for nothing says which constants they had.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.checkpoints.tensors import ForeignModel, find_tokenizer, to_params
from jaxchat.checkpoints.torch_file import read_torch
from jaxchat.config.derive import derive_model
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json, sha256_file

# The folders that its scripts write into, and what they are here.
FOLDERS = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}
_STAGES = {"base": "base", "chat": "sft"}  # in September: EXPERIMENT/MODEL/STAGE
_SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
_NEW = ("resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda")
_SMEAR = ("smear_gate.weight", "smear_lambda")  # gone again in September
_AGES = {
    "classic": "of November 2025",
    "modern": "of July 2026",
    "september": "of September 2026",
}
_MODEL = re.compile(r"model_(\d+)\.pt")


def nanochat_name(path: tuple[str, ...]) -> str:
    """nanochat's name of the parameter at a path of our tree, for `to_params`.

    Its matrices are [out, in]; its two lone scalars are vectors of one; since 2026 it pads the
    vocabulary to a multiple of 64, with rows that no token reaches.
    """
    if len(path) == 1:  # a scalar, or one scalar a layer
        return path[0]
    *modules, _ = path  # the last is "kernel" or "embedding", always "weight" there
    modules[0] = re.sub(r"^(h|value_embeds)_(\d+)$", r"\1.\2", modules[0])
    trunk = modules[0] == "wte" or modules[0].startswith("h.")
    return ".".join([*(["transformer"] if trunk else []), *modules, "weight"])


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The weights files of a folder, by their step, in order."""
    matches = ((_MODEL.fullmatch(path.name), path) for path in folder.glob("model_*.pt"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def read_nanochat(folder: Path, step: int | None, tokenizer_folder: Path | None) -> ForeignModel:
    """The checkpoint of a step, by default the last, and the tokenizer beside or above it.

    Raises ArtifactError, in one sentence, for what is missing, damaged, or of another version.
    """
    files = checkpoints_in(folder)
    if not files:
        raise ArtifactError(f"{folder} has no checkpoint of nanochat: no model_STEP.pt.")
    if step is not None and step not in files:
        there = ", ".join(map(str, files))
        raise ArtifactError(f"{folder} has no checkpoint of step {step}; it has {there}.")
    weights = files[max(files) if step is None else step]
    meta = weights.with_name(weights.name.replace("model_", "meta_", 1)).with_suffix(".json")
    sizes = _sizes(meta)
    usual = [tokenizer_folder] if tokenizer_folder else _tokenizers(folder.absolute())
    tokenizer, tokenizer_file = find_tokenizer(usual)
    if tokenizer.vocab_size != sizes["vocab_size"]:
        raise ArtifactError(
            f"the tokenizer in {tokenizer_file} has {tokenizer.vocab_size:,} tokens, but the model "
            f"in {folder} {sizes['vocab_size']:,}: they do not belong together; name its own with "
            "--tokenizer."
        )
    tensors = {n.removeprefix("_orig_mod."): t for n, t in read_torch(weights).items()}
    preset = _preset(tensors, sizes, weights)
    try:
        model = _model(sizes, preset)
        params = to_params(tensors, model, nanochat_name)
    except ValueError as error:  # ConfigError, too
        raise ArtifactError(f"{weights} cannot be imported: {error}") from error
    constants = (
        f"the checkpoint does not say which version of nanochat wrote it; by its tensors it is one "
        f"{_AGES[preset]}, so rope base {model.rope_base:,.0f} and q/k scale {model.qk_scale}."
    )
    return ForeignModel(
        format=f"nanochat {_AGES[preset]}",
        params=params,
        model=model,
        tokenizer=tokenizer,
        stage=FOLDERS.get(folder.absolute().parent.name) or _STAGES.get(folder.name, ""),
        files={path.name: sha256_file(path) for path in (weights, meta, tokenizer_file)},
        notes=(constants,),
        preset=preset,
    )


def _tokenizers(folder: Path) -> list[Path]:
    """Where the tokenizer of a checkpoint may be: beside it, or where nanochat keeps it.

    That is BASE/tokenizer for BASE/STAGE_checkpoints/MODEL, and BASE/datasets/DATASET/tokenizer for
    BASE/experiments/NAME/MODEL/STAGE.
    """
    usual = [folder, folder / "tokenizer", folder.parent.parent / "tokenizer"]
    experiment = folder.parent.parent
    if experiment.parent.name != "experiments":
        return usual
    noted = experiment / "meta.json"
    meta = read_json(noted) if noted.is_file() else {}
    dataset = str(meta.get("dataset", "climbmix")) if isinstance(meta, dict) else "climbmix"
    return [*usual, experiment.parent.parent / "datasets" / dataset / "tokenizer"]


def _sizes(meta: Path) -> dict[str, Any]:
    """The model_config of a meta file. Raises ArtifactError for fields that are not known."""
    content = read_json(meta)
    config = content.get("model_config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ArtifactError(f"{meta} has no model_config; it is not of nanochat's checkpoints.")
    unknown = sorted(config.keys() - {*_SIZES, "window_pattern", "short_seq_len"})
    missing = [name for name in _SIZES if type(config.get(name)) is not int]
    if unknown or missing:
        odd = f"does not know {unknown[0]!r}" if unknown else f"needs a whole {missing[0]}"
        raise ArtifactError(
            f"the model_config in {meta} is of another version of nanochat: jaxchat {odd}; only "
            "checkpoints of November 2025, July 2026 and September 2026 can be imported."
        )
    return config


def _preset(tensors: Mapping[str, np.ndarray], sizes: Mapping[str, Any], path: Path) -> str:
    """The preset of a checkpoint's version. Raises ArtifactError for one between them."""
    has = {name: name in tensors for name in _NEW}
    for name in ("value_embeds.", ".ve_gate."):
        has[f"*{name}*"] = any(name in tensor for tensor in tensors)
    if "short_seq_len" not in sizes and len(set(has.values())) == 1:
        return "modern" if has["smear_lambda"] else "classic"
    if "short_seq_len" in sizes and all(has[name] != (name in _SMEAR) for name in has):
        return "september"
    there = [name for name, found in has.items() if found]
    raise ArtifactError(
        f"{path} is of a version of nanochat between November 2025, July 2026 and September 2026: "
        f"it has {', '.join(there)}, but not "
        f"{', '.join(name for name in has if name not in there)}; such ones cannot be imported."
    )


def _model(sizes: Mapping[str, Any], preset: str) -> ModelConfig:
    """A preset's architecture with these sizes. Raises ConfigError for impossible ones."""
    pattern = sizes.get("window_pattern", "L")
    if preset == "classic" and set(str(pattern).upper()) != {"L"}:
        raise ValueError(f"its window_pattern is {pattern!r}, which November 2025 did not have.")
    return dataclasses.replace(
        derive_model(2, preset, 512),  # what a preset has whatever the size
        **{name: sizes[name] for name in _SIZES},
        window_pattern=str(pattern).upper(),
        short_window=sizes.get("short_seq_len", 0),
    )
