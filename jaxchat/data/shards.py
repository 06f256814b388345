"""Preparing shards: files of text become rows of tokens, one shard for each.

Killed at any moment, the same call resumes with what is whole and gives the same bytes. Shards are
prepared by threads: reading Parquet, encoding and hashing release the interpreter lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from jaxchat.config.schema import RunConfig
from jaxchat.data import packing, shard_folder
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.inputs import Inputs, text_files
from jaxchat.data.own import InputFile, hash_of
from jaxchat.data.shard_folder import (
    FORMAT,
    DamagedShard,
    FolderManifest,
    InputName,
    ShardFolder,
    ShardManifest,
)
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import atomic_open, remove, sha256_text, sweep
from jaxchat.progress import Progress
from jaxchat.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # encoded at a time
SEGMENT_TOKENS = 1 << 24  # packed at a time: what bounds memory, to about 200 MB a worker
MOST_WORKERS = 8  # that are of use: str and plans of rows are made under the interpreter lock
POLL = 0.2  # seconds
TEXT_FOLDER = "text"  # of a run
AHEAD = 8  # files that are downloaded before they are needed

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A whole folder of shards."""

    shards: int  # the held-out one among them
    made: int  # by this call; the others were there
    training: packing.TextStatistics
    held_out: packing.TextStatistics
    seconds: float


Fetch = Callable[[InputFile], Path]


def prepare_shards(
    inputs: Sequence[InputFile],
    tokenizer: Tokenizer,
    row_tokens: int,
    folder: Path,
    *,
    workers: int,
    fetch: Fetch | None = None,
) -> Prepared:
    """Makes a shard of rows of `row_tokens` = T+1 ids of each input; the last is held out.

    `fetch` returns the file of an input that has no path, when it is there; it is called by the
    workers, in order. The held-out shard comes first, then the others in their order. At most
    MOST_WORKERS `workers` are started: more are of no use.

    Raises ConfigError for fewer than two inputs, and ArtifactError when the folder holds other
    shards, when another process works on it, and when an input is not what its hash says.
    """
    if len(inputs) < 2:
        raise ConfigError(
            f"there is {len(inputs)} file of text for shards; at least 2 are needed, of which the "
            "last is held out; add another."
        )
    manifest = FolderManifest(
        format=FORMAT,
        tokenizer=tokenizer.hash,
        row_tokens=row_tokens,
        dtype=np.dtype(packing.token_dtype(tokenizer.vocab_size)).name,
        packing=packing.VERSION,
        inputs=tuple(InputName(i.name, i.sha256) for i in inputs),
        validation=len(inputs) - 1,
    )
    began = time.monotonic()
    with _locked(folder):
        made = shard_folder.create(folder, manifest)
        sweep(folder)
        maker = _Maker(made, tokenizer, inputs, fetch)
        maker.run(max(1, min(workers, len(inputs), MOST_WORKERS)))
    held_out = manifest.validation
    training = [s for n, s in maker.statistics.items() if n != held_out]
    if not (total := reduce(add, training)).rows:
        raise ArtifactError(
            f"the text for {folder} does not fill one row of {row_tokens} tokens; give more text, "
            "or shorter rows."
        )
    seconds = time.monotonic() - began
    return Prepared(len(inputs), maker.made, total, maker.statistics[held_out], seconds)


@dataclass
class _Maker:
    """Prepares the shards of a folder with threads; `stop` ends them between two batches."""

    folder: ShardFolder
    tokenizer: Tokenizer
    inputs: Sequence[InputFile]
    fetch: Fetch | None
    statistics: dict[int, packing.TextStatistics] = field(default_factory=dict)
    made: int = 0
    read: dict[int, int] = field(default_factory=dict)  # bytes of files, by shard
    found: int = 0  # bytes of the files of shards that were there already
    characters: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, workers: int) -> None:
        """Prepares what is missing. The first error ends it."""
        sizes = [i.size for i in self.inputs]
        total = sum(sizes) if all(sizes) else 0
        order = [self.folder.manifest.validation]
        order += [n for n in range(len(self.inputs)) if n not in order]
        with (
            Progress("preparing shards", total // 1_000_000, "MB") as bar,
            ThreadPoolExecutor(workers, "shards") as pool,
        ):
            pending = {pool.submit(self.ensure, number) for number in order}
            try:
                while pending:
                    done, pending = wait(pending, POLL, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self.show(bar)
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def show(self, bar: Progress) -> None:
        """Shows bytes of files, for the time left, and characters, for the speed."""
        bar.start = self.found // 1_000_000
        rate = self.characters / 1e6 / max(time.monotonic() - bar.began, 1e-9)
        note = f"{rate:.1f} million characters/s, shard {len(self.statistics)}/{len(self.inputs)}"
        bar.update((self.found + sum(list(self.read.values()))) // 1_000_000, note)

    def ensure(self, number: int) -> None:
        """Makes a shard, unless it is there and whole. An error stops the other workers too."""
        try:
            if self.stop.is_set():
                raise _Stopped
            found = self.find(number)
            manifest = found or self.folder.write_manifest(number, self.make(number))
        except _Stopped:
            return
        except BaseException:
            self.stop.set()
            raise
        with self.lock:
            self.statistics[number] = manifest.statistics
            self.made += found is None
            self.found += self.inputs[number].size if found else 0

    def find(self, number: int) -> ShardManifest | None:
        """The manifest of a shard that is there and whole; a damaged one is reported."""
        try:
            manifest = self.folder.read_manifest(number)
            if manifest is not None:
                self.folder.check(number, manifest)
            return manifest
        except DamagedShard as error:
            print(f"{error} It is made again now.", file=sys.stderr, flush=True)
            return None

    def make(self, number: int) -> packing.TextStatistics:
        """Writes the rows of a shard. Raises ArtifactError where its files are not those named."""
        entry, shard = self.inputs[number], self.folder.name(number)
        if not entry.paths and self.fetch is None:
            raise ValueError(f"{shard} has no path, and there is no `fetch`.")
        paths = entry.paths if self.fetch is None or entry.paths else (self.fetch(entry),)
        if (found := hash_of(paths)) != entry.sha256:
            raise ArtifactError(
                f"{shard} is not what was announced: {paths[0]} has the sha256 {found[:12]}, not "
                f"{entry.sha256[:12]}; fetch it again, or prepare into another folder."
            )
        statistics = packing.TextStatistics()
        with atomic_open(self.folder.file(number), "wb") as file:
            row = self.folder.manifest.row_tokens
            dtype = np.dtype(self.folder.manifest.dtype)
            _write_header(file, dtype, (0, row))
            begin, texts = file.tell(), TextFiles.of(paths)
            encoded = self.encoded(number, texts)
            for batches in _chunks(encoded, lambda batch: len(batch[0]), SEGMENT_TOKENS):
                rows, counts = packing.pack_text(*packing.join(batches), row, self.tokenizer.bos)
                statistics += counts
                file.write(rows.data)
            file.seek(0)
            _write_header(file, dtype, (statistics.rows, row))
            assert file.tell() == begin, "the header of an .npy file changed its size"
        for remark in texts.remarks():
            print(remark, file=sys.stderr, flush=True)
        return statistics

    def encoded(
        self, number: int, files: TextFiles
    ) -> Iterator[tuple[packing.Ids, packing.Offsets]]:
        """The documents of a shard, encoded, a batch at a time."""
        for texts in _chunks(files, len, BATCH_CHARACTERS):
            if self.stop.is_set():
                raise _Stopped
            # One thread: the other cores have shards of their own.
            encoded = self.tokenizer.encode_batch(texts, prepend="<|bos|>", threads=1)
            self.read[number] = files.done
            with self.lock:
                self.characters += sum(map(len, texts))
            yield encoded


class _Stopped(Exception):
    """Another worker failed, or the process is to end."""


def _chunks(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Items in lists that end as soon as their sizes sum up to `enough`."""
    chunk: list[T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if total >= enough:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    """Writes an .npy header, in which NumPy leaves room for any first dimension."""
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing into the folder while open."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                f"another process prepares the shards in {folder}; wait until it ends, or name "
                "another folder."
            ) from error
        yield  # the lock goes with the file, even when the process is killed


def text_hash(inputs: Inputs, tokenizer: Tokenizer, row_tokens: int) -> str:
    """The hash of all that decides the rows of text: known before they are there."""
    files = (file.sha256 for file in inputs.text)
    return sha256_text(str(packing.VERSION), tokenizer.hash, str(row_tokens), *files)


def text_folder(run: Path, inputs: Inputs, tokenizer: Tokenizer, row_tokens: int) -> Path:
    """The folder of a run's rows of text: other text or another tokenizer has another one.

    It is none of a stage's, so that what else the stage `rows` makes can be made again alone.
    """
    return run / TEXT_FOLDER / text_hash(inputs, tokenizer, row_tokens)[:16]


def delete_other_rows(folder: Path) -> None:
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
    """Makes the shards of a run's text in `folder`, downloading what is missing; resumes.

    Raises as `prepare_shards` and `download` do.
    """
    here = all(path.exists() for file in inputs.text for path in file.paths)
    fetch = None if here else _Fetcher(config, inputs, hub)
    shards = [file if here else replace(file, paths=()) for file in inputs.text]
    return prepare_shards(
        shards, tokenizer, config.model.sequence_len + 1, folder, workers=workers, fetch=fetch
    )


class _Fetcher:
    """Downloads files in the order in which shards are prepared, some ahead of their use."""

    def __init__(self, config: RunConfig, inputs: Inputs, hub: Hub) -> None:
        """Raises ArtifactError when the files are no longer those that the run began with."""
        remote = {file.path: file for file in text_files(config.data, hub)}
        files = []
        for wanted in (inputs.text[-1], *inputs.text[:-1]):
            file = remote.get(wanted.name)
            if file is None or file.sha256 not in (None, wanted.sha256):
                raise ArtifactError(
                    f"{wanted.name} is no longer what it was when the run began; begin with the "
                    "new files with --force data."
                )
            files.append(file)
        self._coming = download(files, hub.web, ahead=AHEAD, offline=hub.offline)
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()

    def __call__(self, shard: InputFile) -> Path:
        """The file of a shard, waiting until it is there."""
        with self._lock:
            while shard.name not in self._paths:
                file, path = next(self._coming)
                self._paths[file.path] = path
            return self._paths[shard.name]
