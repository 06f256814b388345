"""The rows of a run's text: shards made of its files, which come meanwhile (I/O; layer 2)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from jaxchat.config.schema import RunConfig
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download
from jaxchat.data.inputs import InputFile, Inputs, text_files
from jaxchat.data.packing import VERSION
from jaxchat.data.shards import Prepared, ShardInput, prepare_shards
from jaxchat.errors import ArtifactError
from jaxchat.paths import remove, sha256_text
from jaxchat.tokenizer import Tokenizer

FOLDER = "text"  # of a run
AHEAD = 8  # files that are downloaded before they are needed


def text_hash(inputs: Inputs, tokenizer: Tokenizer, row_tokens: int) -> str:
    """What decides the rows of text: known before they are there."""
    files = (file.sha256 for file in inputs.text)
    return sha256_text(str(VERSION), tokenizer.hash, str(row_tokens), *files)


def text_folder(run: Path, inputs: Inputs, tokenizer: Tokenizer, row_tokens: int) -> Path:
    """Where the rows of a run's text are: other text or another tokenizer has another folder.

    It is none of a stage's, so that what else the stage `rows` makes can be made again alone.
    """
    return run / FOLDER / text_hash(inputs, tokenizer, row_tokens)[:16]


def forget_others(folder: Path) -> None:
    """Deletes the rows of text that the run had before."""
    for path in folder.parent.iterdir() if folder.parent.exists() else ():
        if path.is_dir() and path != folder:
            remove(path)


def prepare_text(
    config: RunConfig,
    inputs: Inputs,
    tokenizer: Tokenizer,
    folder: Path,
    hub: Hub,
    *,
    workers: int,
) -> Prepared:
    """Makes the shards of a run's text in `folder`, downloading what is missing; goes on.

    Raises as `prepare_shards` and `download` do.
    """
    here = all(path.exists() for file in inputs.text for path in file.paths)
    fetch = None if here else Fetcher(config, inputs, hub)
    shards = [ShardInput(f.name, f.sha256, f.paths if here else (), f.size) for f in inputs.text]
    return prepare_shards(
        shards, tokenizer, config.model.sequence_len + 1, folder, workers=workers, fetch=fetch
    )


class Fetcher:
    """Downloads files in the order in which shards are prepared, some ahead of their use."""

    def __init__(self, config: RunConfig, inputs: Inputs, hub: Hub) -> None:
        """Raises ArtifactError when the files are no longer those that the run began with."""
        remote = {file.path: file for file in text_files(config.data, hub)}
        order = (inputs.text[-1], *inputs.text[:-1])
        files = [_same(remote, file) for file in order]
        self._coming = download(files, hub.web, ahead=AHEAD, offline=hub.offline)
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()

    def __call__(self, shard: ShardInput) -> Path:
        """The file of a shard, when it is there."""
        with self._lock:
            while shard.name not in self._paths:
                file, path = next(self._coming)
                self._paths[file.path] = path
            return self._paths[shard.name]


def _same(remote: Mapping[str, RemoteFile], wanted: InputFile) -> RemoteFile:
    file = remote.get(wanted.name)
    if file is None or file.sha256 not in (None, wanted.sha256):
        raise ArtifactError(
            f"{wanted.name} is no longer what it was when the run began; begin with the new files "
            "with --force data."
        )
    return file
