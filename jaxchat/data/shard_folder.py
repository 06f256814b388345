"""A folder of tokenized shards: what is in it, and whether it is whole (I/O; layer 2).

manifest.json     what all shards have in common; written first, so that reading can begin early
shard_00012.npy   rows of shard 12, [N, T+1] of uint16 or uint32
shard_00012.json  its manifest; written last: where it is, the shard is whole
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.data.packing import TextStatistics
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json, sha256_file, write_json

FORMAT = "jaxchat-shards-1"
MANIFEST = "manifest.json"
AGAIN = "give the command that prepares the shards again"


@dataclass(frozen=True)
class InputName:
    """A file that a shard is made of."""

    name: str = field(compare=False)  # for people
    sha256: str


@dataclass(frozen=True)
class FolderManifest:
    """What all shards of a folder have in common."""

    format: str
    tokenizer: str  # hash
    row_tokens: int  # T+1
    dtype: str
    packing: int  # version of the rules
    inputs: tuple[InputName, ...]  # one for each shard, in order
    validation: int  # the shard that is held out


@dataclass(frozen=True)
class ShardManifest:
    """What one shard holds."""

    format: str
    tokenizer: str
    row_tokens: int
    packing: int
    input: InputName
    statistics: TextStatistics
    sha256: str  # of the .npy

    @property
    def rows(self) -> int:
        """How many rows of T+1 tokens."""
        return self.statistics.rows


class DamagedShard(ArtifactError):
    """A shard that is not what its manifest says; it can be made again."""


class ShardFolder:
    """The shards of a folder, by number; some may not be there yet."""

    def __init__(self, path: Path) -> None:
        """Raises ArtifactError when there is no folder manifest, or none that can be used."""
        self.path = path
        self.manifest = _read_folder_manifest(path / MANIFEST)

    def __len__(self) -> int:
        return len(self.manifest.inputs)

    def file(self, number: int) -> Path:
        """Where the rows of a shard are."""
        return self.path / f"shard_{number:05d}.npy"

    def name(self, number: int) -> str:
        """How a shard is told to people, who count from 1."""
        return f"shard {number + 1} of {len(self)} ({self.manifest.inputs[number].name})"

    def write_manifest(self, number: int, statistics: TextStatistics) -> ShardManifest:
        """Declares a shard, whose file is there, to be whole."""
        common = self.manifest
        manifest = ShardManifest(
            format=common.format,
            tokenizer=common.tokenizer,
            row_tokens=common.row_tokens,
            packing=common.packing,
            input=common.inputs[number],
            statistics=statistics,
            sha256=sha256_file(self.file(number)),
        )
        write_json(self.file(number).with_suffix(".json"), asdict(manifest))
        return manifest

    def read_manifest(self, number: int) -> ShardManifest | None:
        """The manifest of a shard; None while it is not there.

        Raises ArtifactError, with what differs, for one that does not belong to this folder, and
        DamagedShard for one that is no manifest.
        """
        path = self.file(number).with_suffix(".json")
        if not path.exists():
            return None
        manifest = _read_shard_manifest(path)
        common = self.manifest
        expected = {
            "format": common.format,
            "tokenizer": common.tokenizer,
            "row_tokens": common.row_tokens,
            "packing": common.packing,
            "input": common.inputs[number],
        }
        found = {name: getattr(manifest, name) for name in expected}
        if differences := list(different(found, expected)):
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
        shape, dtype = (manifest.rows, manifest.row_tokens), np.dtype(self.manifest.dtype)
        if manifest.rows == 0:  # nothing that could be mapped
            return np.zeros(shape, dtype)
        array = np.load(self.file(number), mmap_mode="r")
        if array.shape != shape or array.dtype != dtype:
            raise DamagedShard(
                f"{self.file(number)} holds {array.dtype} of shape {array.shape}, not {dtype} of "
                f"{shape} as its manifest says; {AGAIN}, which makes it again."
            )
        return np.asarray(array)


def is_whole(path: Path) -> bool:
    """Whether all shards of a folder are there; what they hold is checked when they are read."""
    if not (path / MANIFEST).exists():
        return False
    folder = ShardFolder(path)
    return all(folder.file(number).with_suffix(".json").exists() for number in range(len(folder)))


def create(path: Path, manifest: FolderManifest) -> ShardFolder:
    """A folder for shards; what is there already is gone on with.

    Raises ArtifactError, with what differs, when it was begun for something else.
    """
    if (path / MANIFEST).exists():
        folder = ShardFolder(path)
        found, wanted = vars(folder.manifest), vars(manifest)
        if differences := list(different(found, wanted)):
            raise ArtifactError(
                f"the shards in {path} were prepared for something else "
                f"({'; '.join(differences)}); delete the folder, or name another."
            )
        return folder
    write_json(path / MANIFEST, asdict(manifest))
    return ShardFolder(path)


def different(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
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


def _read_folder_manifest(path: Path) -> FolderManifest:
    try:
        value = dict(read_json(path))
        inputs = tuple(InputName(**entry) for entry in value.pop("inputs"))
        manifest = FolderManifest(**value, inputs=inputs)
        _check_types(manifest)
        if manifest.format != FORMAT:
            raise TypeError(f"its format is {manifest.format}, not {FORMAT}")
        if not 0 <= manifest.validation < len(inputs):
            raise TypeError(f"it holds out shard {manifest.validation} of {len(inputs)}")
    except (ArtifactError, TypeError, KeyError, ValueError) as error:
        reason = str(error).split(";")[0].removesuffix(".")
        raise ArtifactError(
            f"{path} is no manifest of shards ({reason}); delete the folder, and {AGAIN}."
        ) from error
    return manifest


def _read_shard_manifest(path: Path) -> ShardManifest:
    try:
        value = dict(read_json(path))
        value["input"] = InputName(**value["input"])
        value["statistics"] = TextStatistics(**value["statistics"])
        manifest = ShardManifest(**value)
        _check_types(manifest)
        _check_types(manifest.statistics)
    except (ArtifactError, TypeError, KeyError, ValueError) as error:
        reason = str(error).split(";")[0].removesuffix(".")
        raise DamagedShard(f"{path} is no manifest of a shard ({reason}); {AGAIN}.") from error
    return manifest


def _check_types(manifest: Any) -> None:
    """Of the fields that are numbers or text; JSON could hold anything there."""
    for one in fields(manifest):
        value, wanted = getattr(manifest, one.name), {"int": int, "str": str}.get(str(one.type))
        if wanted and type(value) is not wanted:
            raise TypeError(f"its {one.name} is {value!r}")
