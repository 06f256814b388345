"""Rows of T+1 tokens on disk: memory-mapped arrays with a manifest, and Grain over them.

A rows folder holds `tokens.npy` [N, T+1], optionally `mask.npy` [N, T+1] (the token's weight in the
loss; 0: it is not trained on) and `manifest.json` with counts, the tokenizer's hash and checksums.
The mask is uint8 where all weights are 0 or 1, else float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from jaxchat.errors import ArtifactError
from jaxchat.paths import atomic_folder, read_json, sha256_file, write_json

FORMAT = "jaxchat-rows-1"


@dataclass(frozen=True)
class RowsManifest:
    """What a rows folder holds."""

    format: str
    tokenizer: str  # hash
    rows: int
    row_tokens: int  # T+1
    trained_tokens: int  # of weight above 0
    checksums: dict[str, str]


def write_rows(
    folder: Path, tokens: np.ndarray, mask: np.ndarray | None, tokenizer_hash: str
) -> RowsManifest:
    """Writes a rows folder atomically; tokens and mask are [N, T+1]."""
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
            format=FORMAT,
            tokenizer=tokenizer_hash,
            rows=len(tokens),
            row_tokens=tokens.shape[1],
            trained_tokens=int(tokens.size if mask is None else np.count_nonzero(mask)),
            checksums={f.name: sha256_file(f) for f in sorted(temporary.glob("*.npy"))},
        )
        write_json(temporary / "manifest.json", asdict(manifest))
    return manifest


def _read_manifest(path: Path) -> RowsManifest:
    try:
        manifest = RowsManifest(**read_json(path))
        if "tokens.npy" not in manifest.checksums:
            raise TypeError("it has no checksum of tokens.npy")
    except (ArtifactError, TypeError) as error:
        reason = str(error).split(";")[0].removesuffix(".")
        raise ArtifactError(
            f"{path} is no rows manifest ({reason}); make the rows again with --force rows."
        ) from error
    return manifest


class RowSource:
    """A random-access Grain source of rows: {"tokens": [T+1], "mask": [T+1]}."""

    def __init__(self, folder: Path, tokenizer_hash: str) -> None:
        """Opens the folder; raises ArtifactError when it is damaged or of another tokenizer."""
        self.manifest = _read_manifest(folder / "manifest.json")
        if self.manifest.format != FORMAT or self.manifest.tokenizer != tokenizer_hash:
            raise ArtifactError(
                f"the rows in {folder} are of format {self.manifest.format} and tokenizer "
                f"{self.manifest.tokenizer[:12]}, not {FORMAT} and {tokenizer_hash[:12]}; "
                "make them again with --force rows."
            )
        for name, checksum in self.manifest.checksums.items():
            path = folder / name
            if not path.exists() or sha256_file(path) != checksum:
                raise ArtifactError(
                    f"{path} is missing or damaged (its checksum is not the manifest's); "
                    "make it again with --force rows."
                )
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        masked = "mask.npy" in self.manifest.checksums
        self.mask = np.load(folder / "mask.npy", mmap_mode="r") if masked else None
        shape = (self.manifest.rows, self.manifest.row_tokens)
        if self.tokens.shape != shape or (self.mask is not None and self.mask.shape != shape):
            raise ArtifactError(
                f"the rows in {folder} are of shape {self.tokens.shape}, not {shape} as their "
                "manifest says; make them again with --force rows."
            )

    def __len__(self) -> int:
        return self.manifest.rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = np.asarray(self.tokens[index], dtype=np.int32)
        if self.mask is None:
            return {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}
        return {"tokens": tokens, "mask": np.asarray(self.mask[index], dtype=np.float32)}


class Rows(Protocol):
    """A random-access Grain source of rows, as RowSource is."""

    def __len__(self) -> int:
        """How many rows."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"tokens": [T+1], "mask": [T+1]}."""


class EndlessRows(Protocol):
    """Rows without end, which shuffle themselves, as stream.ShardedRows."""

    def take(self, indices: np.ndarray, seed: int) -> np.ndarray:
        """The tokens [n, T+1] at n places of the order that the seed gives."""


class _EndlessBatches:
    """A Grain source whose item `n` is a process's share of the batch of step `n`.

    Gathering a batch at once is many times faster than row by row (bench/data.py).
    """

    def __init__(
        self, source: EndlessRows, rows: int, seed: int, process: int, processes: int
    ) -> None:
        self.source, self.rows, self.seed = source, rows, seed
        self.share = np.arange(process, rows, processes)

    def __len__(self) -> int:
        return 1 << 40  # steps: as good as endless

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        tokens = self.source.take(step * self.rows + self.share, self.seed)
        return {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}


def training_batches(
    source: RowSource | EndlessRows, rows: int, seed: int, process: int = 0, processes: int = 1
) -> grain.MapDataset:
    """Endless shuffled batches of `rows` rows; item `n` is the batch of step `n`.

    The position in the data is the step's number, so a resume is exact. With several processes
    each takes its share of every batch.
    """
    _check_share(rows, processes)
    if not isinstance(source, RowSource):
        return grain.MapDataset.source(_EndlessBatches(source, rows, seed, process, processes))
    dataset: Any = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    return dataset[process::processes].batch(rows // processes)


def validation_batches(
    source: Rows, rows: int, limit: int, process: int = 0, processes: int = 1
) -> grain.MapDataset:
    """The first `limit` rows in order, in batches of exactly `rows`; a partial last one is left.

    Where all are fewer than a batch, it is filled up with rows whose mask is 0: they count nowhere.
    With several processes each takes its share of every batch. Raises ArtifactError for no rows.
    """
    _check_share(rows, processes)
    there = min(limit, len(source))
    if there == 0:
        raise ArtifactError("there is not one held-out row.")
    dataset: Any = grain.MapDataset.source(
        source if there >= rows else _Filled(source, there, rows)
    )
    return dataset[: max(there, rows) // rows * rows][process::processes].batch(rows // processes)


class _Filled:
    """The first `there` of a source's rows, and masked ones up to `rows`."""

    def __init__(self, source: Rows, there: int, rows: int) -> None:
        self.source, self.there, self.rows = source, there, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.source[index % self.there]
        return row if index < self.there else row | {"mask": np.zeros_like(row["mask"])}


def _check_share(rows: int, processes: int) -> None:
    if rows % processes:
        raise ValueError(f"{rows} rows a step do not divide by {processes} processes.")
