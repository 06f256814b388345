"""Rows of T+1 tokens on disk, with manifests and checksums.

A folder of tokenized shards, of text:

    manifest.json     what all shards have in common; written first, so that reading can begin early
    shard_00012.npy   rows of shard 12, [N, T+1] of uint16 or uint32
    shard_00012.json  its manifest; written last: where it is, the shard is whole

A folder of rows, of conversations:

    tokens.npy        [N, T+1]
    mask.npy          [N, T+1] weights in the loss (0: not trained on); uint8 where all are 0 or 1,
                      else float32; missing where all are 1
    manifest.json     counts, the tokenizer's hash and checksums
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from jaxchat.data.packing import TextStatistics
from jaxchat.data.records import InvalidRecord, read_record
from jaxchat.errors import ArtifactError
from jaxchat.paths import atomic_folder, sha256_file, write_json

FORMAT = "jaxchat-shards-1"
ROWS_FORMAT = "jaxchat-rows-1"
MANIFEST = "manifest.json"
AGAIN = "give the command that prepares the shards again"

_STRICT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class InputName:
    """A file that a shard is made of."""

    name: str = field(compare=False)  # for people
    sha256: str


@dataclass(frozen=True, config=_STRICT)
class FolderManifest:
    """The manifest of a folder of shards: what they have in common."""

    format: str
    tokenizer: str  # hash
    row_tokens: int  # T+1
    dtype: str
    packing: int  # version of the rules
    inputs: tuple[InputName, ...]  # one for each shard, in order
    validation: int  # the shard that is held out


@dataclass(frozen=True, config=_STRICT)
class ShardManifest:
    """The manifest of one shard."""

    format: str
    tokenizer: str  # hash
    row_tokens: int  # T+1
    packing: int  # version of the rules
    input: InputName
    statistics: TextStatistics
    sha256: str  # of the .npy


@dataclass(frozen=True, config=_STRICT)
class RowsManifest:
    """The manifest of a folder of rows."""

    format: str
    tokenizer: str  # hash
    rows: int
    row_tokens: int  # T+1
    trained_tokens: int  # of weight above 0
    checksums: dict[str, str]  # file -> sha256


class DamagedShard(ArtifactError):
    """A shard that does not match its manifest; it can be made again."""


class ShardFolder:
    """The shards of a folder, by number; some may not be there yet."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError when there is no folder manifest, or an unusable one."""
        self.path = path
        self.manifest = _read_folder_manifest(path / MANIFEST)

    def __len__(self) -> int:
        return len(self.manifest.inputs)

    def file(self, number: int) -> Path:
        """The path of a shard's rows."""
        return self.path / f"shard_{number:05d}.npy"

    def name(self, number: int) -> str:
        """A shard's name in messages, which count from 1."""
        return f"shard {number + 1} of {len(self)} ({self.manifest.inputs[number].name})"

    def _common(self, number: int) -> dict[str, Any]:
        """The fields that a shard's manifest shares with the folder's."""
        names = ("format", "tokenizer", "row_tokens", "packing")
        common = {name: getattr(self.manifest, name) for name in names}
        return common | {"input": self.manifest.inputs[number]}

    def write_manifest(self, number: int, statistics: TextStatistics) -> ShardManifest:
        """Declares a shard, whose file is there, to be whole."""
        digest = sha256_file(self.file(number))
        manifest = ShardManifest(**self._common(number), statistics=statistics, sha256=digest)
        write_json(self.file(number).with_suffix(".json"), asdict(manifest))
        return manifest

    def read_manifest(self, number: int) -> ShardManifest | None:
        """The manifest of a shard; None while it is not there.

        Raises ArtifactError, with what differs, for one that does not belong to this folder, and
        DamagedShard for one that cannot be read.
        """
        path = self.file(number).with_suffix(".json")
        if not path.exists():
            return None
        try:
            manifest = read_record(path, ShardManifest)
        except InvalidRecord as error:
            raise DamagedShard(f"{path} is no manifest of a shard ({error}); {AGAIN}.") from error
        if differences := list(different(vars(manifest), self._common(number))):
            raise ArtifactError(
                f"{path} does not belong to this folder ({'; '.join(differences)}); delete it, and "
                f"{AGAIN}."
            )
        return manifest

    def check(self, number: int, manifest: ShardManifest) -> None:
        """Raises DamagedShard when a shard's bytes are not those that were written."""
        path = self.file(number)
        if not path.exists() or sha256_file(path) != manifest.sha256:
            raise DamagedShard(
                f"{path}, {self.name(number)}, is missing or damaged (its checksum is not the "
                f"manifest's); {AGAIN}, which makes it again."
            )

    def load(self, number: int, manifest: ShardManifest) -> np.ndarray:
        """The rows of a shard [N, T+1], memory-mapped."""
        rows, dtype = manifest.statistics.rows, np.dtype(self.manifest.dtype)
        shape = (rows, manifest.row_tokens)
        if rows == 0:  # nothing that could be mapped
            return np.zeros(shape, dtype)
        array = np.load(self.file(number), mmap_mode="r")
        if array.shape != shape or array.dtype != dtype:
            raise DamagedShard(
                f"{self.file(number)} holds {array.dtype} of shape {array.shape}, not {dtype} of "
                f"{shape} as its manifest says; {AGAIN}, which makes it again."
            )
        return np.asarray(array)


def is_whole(path: Path) -> bool:
    """Whether all shards of a folder are there; their content is checked when they are read."""
    if not (path / MANIFEST).exists():
        return False
    folder = ShardFolder(path)
    return all(folder.file(number).with_suffix(".json").exists() for number in range(len(folder)))


def training_tokens(path: Path) -> int | None:
    """Tokens of all rows but the held-out ones; None while a shard is missing."""
    if not is_whole(path):
        return None
    folder = ShardFolder(path)
    found = map(folder.read_manifest, {*range(len(folder))} - {folder.manifest.validation})
    return sum(shard.statistics.rows * shard.row_tokens for shard in found if shard is not None)


def create(path: Path, manifest: FolderManifest) -> ShardFolder:
    """A folder for shards; shards that are there already stay.

    Raises ArtifactError, with what differs, when it was begun for something else.
    """
    if not (path / MANIFEST).exists():
        write_json(path / MANIFEST, asdict(manifest))
    folder = ShardFolder(path)
    if differences := list(different(vars(folder.manifest), vars(manifest))):
        raise ArtifactError(
            f"the shards in {path} were prepared for something else "
            f"({'; '.join(differences)}); delete the folder, or name another."
        )
    return folder


def different(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """`field: old value, now new value` of each that differs."""
    for name, new in wanted.items():
        old = found[name]
        if old == new:
            continue
        if name != "inputs":
            yield f"{name}: {_shown(old)}, now {_shown(new)}"
            continue
        if len(old) != len(new):
            yield f"inputs: {len(old)}, now {len(new)}"
        for place, (a, b) in enumerate(zip_longest(old, new)):
            if a != b:
                yield f"input {place + 1}: {_shown(a)}, now {_shown(b)}"
                break  # one is enough to see what happened


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, InputName):
        return f"{value.name} {value.sha256[:12]}"
    text = str(value)
    return text[:12] if len(text) == 64 else text


def write_rows(
    folder: Path, tokens: np.ndarray, mask: np.ndarray | None, tokenizer_hash: str
) -> RowsManifest:
    """Writes a folder of rows atomically; tokens and mask are [N, T+1]."""
    if tokens.ndim != 2 or len(tokens) == 0:
        raise ArtifactError(
            f"there are no rows to write to {folder.name} (an array of {tokens.shape})."
        )
    with atomic_folder(folder) as temporary:
        np.save(temporary / "tokens.npy", tokens)
        if mask is not None:
            whole = np.isin(mask, (0, 1)).all()
            np.save(temporary / "mask.npy", mask.astype(np.uint8 if whole else np.float32))
        manifest = RowsManifest(
            format=ROWS_FORMAT,
            tokenizer=tokenizer_hash,
            rows=len(tokens),
            row_tokens=tokens.shape[1],
            trained_tokens=int(tokens.size if mask is None else np.count_nonzero(mask)),
            checksums={f.name: sha256_file(f) for f in sorted(temporary.glob("*.npy"))},
        )
        write_json(temporary / MANIFEST, asdict(manifest))
    return manifest


def open_rows(
    folder: Path, tokenizer_hash: str
) -> tuple[RowsManifest, np.ndarray, np.ndarray | None]:
    """Manifest, tokens and mask [N, T+1] of a folder of rows, memory-mapped; None: all are 1.

    Raises ArtifactError when it is damaged or of another tokenizer.
    """
    path = folder / MANIFEST
    try:
        manifest = read_record(path, RowsManifest)
        if "tokens.npy" not in manifest.checksums:
            raise InvalidRecord("it has no checksum of tokens.npy")
    except InvalidRecord as error:
        raise ArtifactError(
            f"{path} is no rows manifest ({error}); make the rows again with --force rows."
        ) from error
    if manifest.format != ROWS_FORMAT or manifest.tokenizer != tokenizer_hash:
        raise ArtifactError(
            f"the rows in {folder} are of format {manifest.format} and tokenizer "
            f"{manifest.tokenizer[:12]}, not {ROWS_FORMAT} and {tokenizer_hash[:12]}; "
            "make them again with --force rows."
        )
    for name, checksum in manifest.checksums.items():
        file = folder / name
        if not file.exists() or sha256_file(file) != checksum:
            raise ArtifactError(
                f"{file} is missing or damaged (its checksum is not the manifest's); "
                "make it again with --force rows."
            )
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    masked = "mask.npy" in manifest.checksums
    mask = np.load(folder / "mask.npy", mmap_mode="r") if masked else None
    shape = (manifest.rows, manifest.row_tokens)
    if tokens.shape != shape or (mask is not None and mask.shape != shape):
        raise ArtifactError(
            f"the rows in {folder} are of shape {tokens.shape}, not {shape} as their "
            "manifest says; make them again with --force rows."
        )
    return manifest, tokens, mask


def _read_folder_manifest(path: Path) -> FolderManifest:
    try:
        manifest = read_record(path, FolderManifest)
        shards = len(manifest.inputs)
        if manifest.format != FORMAT:
            raise InvalidRecord(f"its format is {manifest.format}, not {FORMAT}")
        if not 0 <= manifest.validation < shards:
            raise InvalidRecord(f"it holds out shard {manifest.validation} of {shards}")
    except InvalidRecord as error:
        raise ArtifactError(
            f"{path} is no manifest of shards ({error}); delete the folder, and {AGAIN}."
        ) from error
    return manifest
