"""Models in jaxchat's own portable format, which holds every one of them, bit for bit.

jaxchat.json          the configuration of the whole run, the stage, its results, hashes
model.safetensors     our tree of parameters in float32; a name is its path with /
tokenizer.tiktoken, tokenizer.json     the tokenizer as a run has it
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.checkpoints import safetensors
from jaxchat.checkpoints.foreign import ForeignModel
from jaxchat.checkpoints.huggingface import (
    TOKENIZER_HASH,
    WEIGHTS_HASH,
    check_tokenizer,
    check_weights,
)
from jaxchat.checkpoints.save import hash_params
from jaxchat.checkpoints.tensors import from_params, to_params
from jaxchat.checkpoints.tokenizers import find_tokenizer
from jaxchat.config import loading
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.model.gpt import Params, cut_vocabulary
from jaxchat.paths import read_json, sha256_file, write_json
from jaxchat.tokenizer import Tokenizer

FILE = "jaxchat.json"
FORMAT = "jaxchat-model-1"


def native_name(path: tuple[str, ...]) -> str:
    """What the parameter at a path of our tree is called in the file."""
    return "/".join(path)


def of_tokenizer(
    params: Params, config: RunConfig, tokenizer: Tokenizer
) -> tuple[Params, RunConfig]:
    """A model and its run without ids that the tokenizer does not have (`gpt.cut_vocabulary`)."""
    params, model = cut_vocabulary(params, config.model, tokenizer.vocab_size)
    if model == config.model:
        return params, config
    vocabulary = dataclasses.replace(config.tokenizer, vocab_size=model.vocab_size)
    return params, dataclasses.replace(config, model=model, tokenizer=vocabulary)


def write_native(
    folder: Path,
    params: Params,
    config: RunConfig,
    tokenizer: Tokenizer,
    stage: str,
    results: Mapping[str, Any],
) -> None:
    """Writes a model of any architecture into a folder."""
    hashes = {WEIGHTS_HASH: hash_params(params), TOKENIZER_HASH: tokenizer.hash}
    tokenizer.save(folder)
    tensors = from_params(params, native_name, np.dtype(np.float32), flip=False)
    safetensors.write_safetensors(folder / safetensors.FILE, tensors, {"format": "np", **hashes})
    told = {
        "format": FORMAT,
        "stage": stage,
        **hashes,
        "results": dict(results),
        "config": json.loads(loading.to_json(config)),
    }
    write_json(folder / FILE, told)


def read_native(folder: Path, tokenizer_folder: Path | None) -> ForeignModel:
    """The model of a folder that `write_native` made.

    Raises ArtifactError, in one sentence, for files that are damaged or do not belong together.
    """
    path = folder / FILE
    told = read_json(path)
    try:
        if told["format"] != FORMAT or told["stage"] not in MODELS:
            raise ConfigError(f"its format is {str(told['format'])[:60]!r}, not {FORMAT!r}")
        config = loading.from_json(json.dumps(told["config"]))
    except (KeyError, TypeError, ConfigError) as error:
        reason = str(error).removesuffix(".")
        raise ArtifactError(f"{path} describes no model of this version ({reason}).") from error
    tokenizer, tokenizer_file = find_tokenizer([tokenizer_folder or folder])
    tensors, metadata = safetensors.read_model(folder)
    check_tokenizer(
        tokenizer, {str(told.get(TOKENIZER_HASH)), metadata.get(TOKENIZER_HASH, "")},
        tokenizer_file, folder,
    )  # fmt: skip
    try:
        params = to_params(tensors, config.model, native_name, flip=False)
    except ValueError as error:
        raise ArtifactError(f"the tensors in {folder} cannot be imported: {error}") from error
    check_weights(params, {WEIGHTS_HASH: told.get(WEIGHTS_HASH, "")} | metadata, folder)
    params, config = of_tokenizer(params, config, tokenizer)
    read = [path, tokenizer_file, folder / safetensors.FILE]
    return ForeignModel(
        format="jaxchat",
        params=params,
        model=config.model,
        tokenizer=tokenizer,
        stage=told["stage"],
        files={file.name: sha256_file(file) for file in read},
        config=config,
    )
