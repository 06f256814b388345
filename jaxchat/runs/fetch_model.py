"""Fetches a model from the hub as datasets are fetched: checked, resumed, and kept in the home.

HOME/data/models/OWNER--NAME/COMMIT/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jaxchat.checkpoints import huggingface, native
from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub, open_hub
from jaxchat.data.download.transfer import download_all
from jaxchat.data.registry import Source
from jaxchat.errors import ArtifactError
from jaxchat.paths import offline_by

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
    """The folder with the files of a model, and where they are from, with the commit.

    Of nanochat's checkpoints only that of `step`, or the last, is fetched. Raises ArtifactError for
    what cannot be had, naming what to do.
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
    _download(files, hub, again)
    return listing.folder, f"{repo}@{listing.commit[:12]}"


def _chosen(files: Sequence[RemoteFile], step: int | None) -> list[RemoteFile]:
    """The files of one model, in whichever format is asked for first when it is read."""
    by_name = {file.path: file for file in files if "/" not in file.path}
    steps = sorted({int(match[1]) for name in by_name if (match := _STEP.fullmatch(name))})
    portable = {native.FILE, huggingface.CONFIG} & by_name.keys()
    wanted = None if portable or not steps else steps[-1] if step is None else step
    found = []
    for name, file in by_name.items():
        match = _STEP.fullmatch(name)
        if match is None or int(match[1]) == wanted:
            found.append(file)
    return found


def _download(files: Sequence[RemoteFile], hub: Hub, again: str) -> None:
    missing = [file for file in files if not cache.is_whole(file)]
    if missing and hub.offline:
        raise ArtifactError(
            f"{missing[0]} is not here, and {offline_by()} forbids asking for it; where there "
            f"is a network, run: {again}"
        )
    download_all(files, hub.web, offline=hub.offline)
