"""Models of any architecture in jaxchat's own portable format, bit for bit.

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

from jaxchat.checkpoints.huggingface import TOKENIZER_HASH, WEIGHTS_HASH, read_weights
from jaxchat.checkpoints.save import hash_params
from jaxchat.checkpoints.tensors import (
    SAFETENSORS,
    ForeignModel,
    find_tokenizer,
    from_params,
    write_safetensors,
)
from jaxchat.config import loading
from jaxchat.config.schema import MODELS, RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.model.gpt import Params
from jaxchat.model.vocabulary import cut_vocabulary
from jaxchat.paths import read_json, sha256_file, write_json
from jaxchat.tokenizer import Tokenizer

FILE = "jaxchat.json"
FORMAT = "jaxchat-model-1"


def of_tokenizer(
    params: Params, config: RunConfig, tokenizer: Tokenizer
) -> tuple[Params, RunConfig]:
    """A model and its run without ids that the tokenizer does not have (`cut_vocabulary`)."""
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
    tensors = from_params(params, "/".join, np.dtype(np.float32), flip=False)
    write_safetensors(folder / SAFETENSORS, tensors, {"format": "np", **hashes})
    description = {
        "format": FORMAT,
        "stage": stage,
        **hashes,
        "results": dict(results),
        "config": json.loads(loading.to_json(config)),
    }
    write_json(folder / FILE, description)


def read_native(folder: Path, tokenizer_folder: Path | None) -> ForeignModel:
    """The model of a folder that `write_native` made.

    Raises ArtifactError, in one sentence, for files that are damaged or do not belong together.
    """
    path = folder / FILE
    description = read_json(path)
    try:
        if description["format"] != FORMAT or description["stage"] not in MODELS:
            raise ConfigError(f"its format is {str(description['format'])[:60]!r}, not {FORMAT!r}")
        config = loading.from_json(json.dumps(description["config"]))
    except (KeyError, TypeError, ConfigError) as error:
        reason = str(error).removesuffix(".")
        raise ArtifactError(f"{path} describes no model of this version ({reason}).") from error
    tokenizer, tokenizer_file = find_tokenizer([tokenizer_folder or folder])
    noted = {name: str(description.get(name)) for name in (WEIGHTS_HASH, TOKENIZER_HASH)}
    params, _ = read_weights(
        folder, config.model, ("/".join,), tokenizer, tokenizer_file, noted=noted, flip=False
    )
    params, config = of_tokenizer(params, config, tokenizer)
    read = [path, tokenizer_file, folder / SAFETENSORS]
    return ForeignModel(
        format="jaxchat",
        params=params,
        model=config.model,
        tokenizer=tokenizer,
        stage=description["stage"],
        files={file.name: sha256_file(file) for file in read},
        config=config,
    )
