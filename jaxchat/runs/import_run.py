"""Reads a model from a folder of another place and makes a run of it (layer 4).

    HOME/runs/NAME/config.json            with the table [imported]: stage and hashes
    HOME/runs/NAME/tokenizer              its tokenizer, with a record as the stage writes it
    HOME/runs/NAME/STAGE/model            its weights, with a record

So all that opens a run opens it: chat, evaluation, export, report, and training, which goes on from
STAGE. The records say where the files came from. Stages before STAGE are no part of such a run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxchat.checkpoints import huggingface, nanochat, native
from jaxchat.checkpoints.save import hash_params, save_params
from jaxchat.checkpoints.tensors import ForeignModel
from jaxchat.config import loading
from jaxchat.config.schema import ImportedConfig, RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import atomic_folder
from jaxchat.runs import run_dir, runner

DEFAULT_STAGE = "sft"


def read_model(folder: Path, step: int | None, tokenizer: Path | None) -> ForeignModel:
    """The model in a folder, whatever its format.

    Raises ArtifactError, in one sentence, for a folder that holds none or a damaged one.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder.")
    of_nanochat = bool(nanochat.checkpoints_in(folder))
    if step is not None and not of_nanochat:
        raise ConfigError(f"--step names a checkpoint of nanochat, and {folder} holds none.")
    if (folder / native.FILE).exists():
        return native.read_native(folder, tokenizer)
    if (folder / huggingface.CONFIG).exists():
        return huggingface.read_huggingface_model(folder, tokenizer)
    if of_nanochat:
        return nanochat.read_nanochat(folder, step, tokenizer)
    below = sorted(p.parent.relative_to(folder) for p in folder.glob("*/*/model_*.pt"))
    hint = f"; name a folder with checkpoints, such as {folder / below[-1]}" if below else ""
    raise ArtifactError(
        f"{folder} holds no model that is known here ({huggingface.CONFIG} of transformers, "
        f"{native.FILE} of jaxchat, or model_STEP.pt of nanochat){hint}."
    )


def check_name(root: Path, name: str) -> Path:
    """The folder of the new run. Raises ConfigError when there is one, or it is no name."""
    run = run_dir.folder(root, name)
    if run.exists():
        raise ConfigError(f"there is a run {name!r} already, in {run}; choose another --name.")
    return run


def make_run(root: Path, name: str, found: ForeignModel, stage: str, source: str) -> RunConfig:
    """Makes the run `name` of a model that was read; all of it is there, or nothing.

    `stage` is the place that the model takes among the stages; `source` says where it is from.
    """
    run = check_name(root, name)
    imported = ImportedConfig(stage, hash_params(found.params), found.tokenizer.hash)
    config = _config(found, name, imported)
    told = {"format": found.format, "from": source, "files": dict(found.files)}
    with atomic_folder(run) as temporary:
        found.tokenizer.save(temporary / "tokenizer")
        save_params(temporary / stage / "model", found.params, {"stage": stage})
        results = {"vocabulary": found.tokenizer.vocab_size, "imported": told}
        runner.write_imported(temporary, config, "tokenizer", imported.tokenizer, results)
        runner.write_imported(temporary, config, stage, imported.weights, {"imported": told})
        run_dir.write_config(temporary, config)
    return config


def _config(found: ForeignModel, name: str, imported: ImportedConfig) -> RunConfig:
    """The configuration of the run that the model is from, else that of its architecture."""
    if found.config is not None:
        return dataclasses.replace(found.config, name=name, imported=imported)
    model: dict[str, Any] = dataclasses.asdict(found.model)
    document = {
        "run": {"name": name, "preset": found.model.init, "depth": found.model.n_layer},
        "tokenizer": {"vocab_size": found.tokenizer.vocab_size},
        "model": model,
        "imported": dataclasses.asdict(imported),
    }
    return loading.from_document(document, f"the model {name}")
