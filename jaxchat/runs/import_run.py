"""Imports a model: fetches it from the hub, reads it whatever its format, makes a run of it.

    HOME/data/models/OWNER--NAME/COMMIT/  the files of a model of the hub

    HOME/runs/NAME/config.json            with the table [imported]: stage and hashes
    HOME/runs/NAME/tokenizer              its tokenizer, with a record as the stage writes it
    HOME/runs/NAME/STAGE/model            its weights, with a record

So everything that opens a run opens it: chat, evaluation, export, report, and training, which
continues from STAGE. The records say where the files came from. It has no stages before STAGE.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxchat.checkpoints import huggingface, nanochat, native
from jaxchat.checkpoints.save import hash_params, save_params
from jaxchat.checkpoints.tensors import ForeignModel
from jaxchat.config import loading
from jaxchat.config.schema import ImportedConfig, RunConfig
from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import open_hub
from jaxchat.data.download.transfer import download_all
from jaxchat.data.registry import Source
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import atomic_folder, offline_by
from jaxchat.runs import run_dir, runner

DEFAULT_STAGE = "sft"


# All that any format of a model has; nothing else is asked for.
_PATTERNS = (
    "config.json", "jaxchat.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer.tiktoken", "tokenizer.pkl", "model_*.pt", "meta_*.json",
)  # fmt: skip
_STEP = re.compile(r"(?:model|meta)_(\d+)\.(?:pt|json)")


def fetch_model(
    root: Path,
    repo: str,
    revision: str,
    *,
    step: int | None = None,
    offline: bool = False,
    refresh: bool = False,
) -> tuple[Path, str]:
    """The folder with the files of a model of the hub, and where they are from, with the commit.

    They are downloaded as datasets are: checked, resumed and cached. Of nanochat's checkpoints only
    that of `step`, or the last, is downloaded. Raises ArtifactError for what is not available,
    naming what to do.
    """
    again = f"jaxchat import {repo}" + (f" --revision {revision}" if revision != "main" else "")
    source = Source(
        name=f"models/{repo.replace('/', '--')}",
        kind="chat",  # files by name, none of them a shard
        title=repo,
        repo=repo,
        revision=revision,
        licence="",
        splits={pattern: pattern for pattern in _PATTERNS},
        files=(),
        size=0,
        space="models",
        again=again,
    )
    hub = open_hub(root, offline=offline, refresh=refresh)
    listing = hub.listing(source)
    files = _chosen(listing.files, step)
    missing = [file for file in files if not cache.is_whole(file)]
    if missing and hub.offline:
        raise ArtifactError(
            f"{missing[0]} is not here, and {offline_by()} forbids asking for it; where there "
            f"is a network, run: {again}"
        )
    download_all(files, hub.web, offline=hub.offline)
    return listing.folder, f"{repo}@{listing.commit[:12]}"


def _chosen(files: Sequence[RemoteFile], step: int | None) -> list[RemoteFile]:
    """The files of one model, in whichever format is asked for first when it is read."""
    by_name = {file.path: file for file in files if "/" not in file.path}
    numbers = {name: int(m[1]) for name in by_name if (m := _STEP.fullmatch(name))}
    portable = {native.FILE, huggingface.CONFIG} & by_name.keys()
    wanted = None if portable or not numbers else max(numbers.values()) if step is None else step
    return [file for name, file in by_name.items() if numbers.get(name, wanted) == wanted]


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
    origin = {"format": found.format, "from": source, "files": dict(found.files)}
    with atomic_folder(run) as temporary:
        found.tokenizer.save(temporary / "tokenizer")
        save_params(temporary / stage / "model", found.params, {"stage": stage})
        results = {"vocabulary": found.tokenizer.vocab_size, "imported": origin}
        runner.write_imported(temporary, config, "tokenizer", imported.tokenizer, results)
        runner.write_imported(temporary, config, stage, imported.weights, {"imported": origin})
        run_dir.write_config(temporary, config)
    return config


def _config(found: ForeignModel, name: str, imported: ImportedConfig) -> RunConfig:
    """The configuration of the run that the model is from, else that of its architecture."""
    if found.config is not None:
        return dataclasses.replace(found.config, name=name, imported=imported)
    model: dict[str, Any] = dataclasses.asdict(found.model)
    document = {
        "run": {"name": name, "preset": found.preset, "depth": found.model.n_layer},
        "tokenizer": {
            "vocab_size": found.tokenizer.vocab_size,
            "tool_tokens": found.tokenizer.has_tools,
        },
        "model": model,
        "imported": dataclasses.asdict(imported),
    }
    return loading.from_document(document, f"the model {name}")
