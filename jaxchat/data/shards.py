"""Preparing shards: files of text become rows of tokens, one shard for each (I/O; layer 2).

Killed at any moment, the same call goes on with what is whole and gives the same bytes. Shards are
prepared by threads: reading Parquet, encoding and hashing release the interpreter lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxchat.data import packing, shard_folder
from jaxchat.data.shard_folder import FORMAT, DamagedShard, FolderManifest, InputName, ShardFolder
from jaxchat.data.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import atomic_open, sha256_file, sha256_text, sweep
from jaxchat.progress import Progress
from jaxchat.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # encoded at a time
SEGMENT_TOKENS = 1 << 24  # packed at a time: what bounds memory, to about 200 MB a worker
MOST_WORKERS = 8  # that are of use: str and plans of rows are made under the interpreter lock
POLL = 0.2  # seconds
SMALL_BYTES = 64_000_000  # files below this share a shard, or below a twentieth of all
SMALL_ROWS = 16  # but at least so many rows a shard, of four bytes of text a token


@dataclass(frozen=True)
class ShardInput:
    """What a shard is made of.

    Attributes:
        name: what it is called in manifests and messages.
        sha256: of its file; of several, `sha256_text` of their hashes.
        paths: its files; empty when it has to be fetched first.
        size: bytes of its files, for the time left; 0 when unknown.
    """

    name: str
    sha256: str
    paths: tuple[Path, ...] = ()
    size: int = 0


@dataclass(frozen=True)
class Prepared:
    """What a folder of shards holds when it is whole."""

    shards: int  # the held-out one among them
    made: int  # by this call; the others were there
    training: packing.TextStatistics
    held_out: packing.TextStatistics
    seconds: float
    artifact: str  # hash


Fetch = Callable[[ShardInput], Path]
Checksum = Callable[[Path], str]  # the sha256 of a file's bytes


def prepare_shards(
    inputs: Sequence[ShardInput],
    tokenizer: Tokenizer,
    row_tokens: int,
    folder: Path,
    *,
    workers: int,
    fetch: Fetch | None = None,
) -> Prepared:
    """Makes a shard of rows of `row_tokens` = T+1 ids of each input; the last is held out.

    `fetch` returns the file of an input that has no path, when it is there; it is called by the
    workers, in order. The held-out shard comes first, then the others in their order.

    More than MOST_WORKERS `workers` are of no use, and are not started.

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
    return _summary(made, maker, time.monotonic() - began)


def _summary(folder: ShardFolder, maker: _Maker, seconds: float) -> Prepared:
    held_out = folder.manifest.validation
    training = [s for n, s in maker.statistics.items() if n != held_out]
    if not (total := reduce(add, training)).rows:
        raise ArtifactError(
            f"the text for {folder.path} does not fill one row of {folder.manifest.row_tokens} "
            "tokens; give more text, or shorter rows."
        )
    return Prepared(
        shards=len(folder),
        made=maker.made,
        training=total,
        held_out=maker.statistics[held_out],
        seconds=seconds,
        artifact=sha256_text(*(maker.hashes[n] for n in range(len(folder)))),
    )


@dataclass
class _Maker:
    """Prepares the shards of a folder with threads; `stop` ends them between two batches."""

    folder: ShardFolder
    tokenizer: Tokenizer
    inputs: Sequence[ShardInput]
    fetch: Fetch | None
    statistics: dict[int, packing.TextStatistics] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
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
            pending = {pool.submit(self.prepare, number) for number in order}
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
        """Bytes of files, for the time left, and characters, for the speed."""
        bar.start = self.found // 1_000_000
        rate = self.characters / 1e6 / max(time.monotonic() - bar.began, 1e-9)
        told = f"{rate:.1f} million characters/s, shard {len(self.statistics)}/{len(self.inputs)}"
        bar.update((self.found + sum(list(self.read.values()))) // 1_000_000, told)

    def prepare(self, number: int) -> None:
        """One shard, unless it is there and whole. An error stops the other workers too."""
        try:
            if not self.stop.is_set():
                self.ensure(number)
        except BaseException:
            self.stop.set()
            raise

    def ensure(self, number: int) -> None:
        """Makes a shard that is missing or damaged."""
        try:
            manifest = self.folder.read_manifest(number)
            if manifest is not None:
                self.folder.check(number, manifest)
        except DamagedShard as error:
            print(f"{error} It is made again now.", file=sys.stderr, flush=True)
            manifest = None
        found = manifest is not None
        if manifest is None:
            rows = self.make(number)
            if rows is None:
                return
            manifest = self.folder.write_manifest(number, rows)
        with self.lock:
            self.statistics[number], self.hashes[number] = manifest.statistics, manifest.sha256
            self.made += not found
            self.found += found * self.inputs[number].size

    def make(self, number: int) -> packing.TextStatistics | None:
        """Writes the rows of a shard; None when it was stopped."""
        paths = self.inputs[number].paths
        if not paths:
            if self.fetch is None:
                raise ValueError(f"{self.folder.name(number)} has no path, and nobody fetches it.")
            paths = (self.fetch(self.inputs[number]),)
        self.check_input(number, paths)
        statistics = packing.TextStatistics()
        with contextlib.suppress(_Stopped), atomic_open(self.folder.file(number), "wb") as file:
            row = self.folder.manifest.row_tokens
            dtype = np.dtype(self.folder.manifest.dtype)
            _write_header(file, dtype, (0, row))
            begin, texts = file.tell(), TextFiles.of(paths)
            for batches in self.segments(number, texts):
                rows, counts = packing.pack_text(*packing.join(batches), row, self.tokenizer.bos)
                statistics += counts
                file.write(rows.data)
            file.seek(0)
            _write_header(file, dtype, (statistics.rows, row))
            assert file.tell() == begin, "the header of an .npy file changed its size"
            for remark in texts.remarks():
                print(remark, file=sys.stderr, flush=True)
            return statistics
        return None

    def check_input(self, number: int, paths: Sequence[Path]) -> None:
        """Raises ArtifactError when the files are not those whose hash is in the manifest."""
        entry = self.inputs[number]
        if (found := hash_of(paths)) != entry.sha256:
            raise ArtifactError(
                f"{self.folder.name(number)} is not what was announced: {paths[0]} has the sha256 "
                f"{found[:12]}, not {entry.sha256[:12]}; fetch it again, or prepare into another "
                "folder."
            )

    def segments(
        self, number: int, files: TextFiles
    ) -> Iterator[list[tuple[packing.Ids, packing.Offsets]]]:
        """The documents of a shard, encoded, in parts of about SEGMENT_TOKENS tokens."""
        segment: list[tuple[packing.Ids, packing.Offsets]] = []
        tokens = 0
        for texts in _batches(files):
            if self.stop.is_set():
                raise _Stopped
            # One thread: the other cores have shards of their own.
            encoded = self.tokenizer.encode_batch(texts, prepend="<|bos|>", threads=1)
            segment.append(encoded)
            tokens += len(encoded[0])
            self.read[number] = files.done
            with self.lock:
                self.characters += sum(map(len, texts))
            if tokens >= SEGMENT_TOKENS:
                yield segment
                segment, tokens = [], 0
        if segment:
            yield segment


class _Stopped(Exception):
    """Somebody else failed, or the process is to end."""


def hash_of(paths: Sequence[Path], checksum: Checksum = sha256_file) -> str:
    """The hash of an input's files, of which `checksum` gives each one's."""
    hashes = [checksum(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else sha256_text(*hashes)


def local_inputs(
    folder: Path,
    row_tokens: int,
    checksum: Checksum = sha256_file,
    tell: Callable[[str], object] = lambda summary: None,
) -> list[ShardInput]:
    """The text files below a folder, in the order of their names, as inputs of shards.

    Small files next to each other share a shard: each shard drops what fills no row. A file may
    stand for a folder that holds it alone. `tell` gets a line that says which files are read and
    which are not. Raises ConfigError for neither, and for no text.
    """
    if not folder.exists():
        raise ConfigError(f"{folder} does not exist; name the folder that holds the text.")
    files = TextFiles([str(folder)])
    tell(files.listing.summary())
    paths = [path for path in files.paths if path is not None]
    top = folder if folder.is_dir() else folder.parent
    inputs = []
    done = 0
    with Progress("reading checksums", files.size // 1_000_000, "MB") as bar:
        for group in grouped(files.sizes, row_tokens):
            members = tuple(paths[group.start : group.stop])
            names = [path.relative_to(top).as_posix() for path in (members[0], members[-1])]
            name = names[0] if len(members) == 1 else " to ".join(names)
            size = sum(files.sizes[group.start : group.stop])
            inputs.append(ShardInput(name, hash_of(members, checksum), members, size))
            done += size
            bar.update(done // 1_000_000)
    return inputs


def grouped(sizes: Sequence[int], row_tokens: int) -> list[range]:
    """Which files share a shard: neighbours, until they have enough bytes together.

    The last group is held out, so that there are two at least where there are two files.
    """
    enough = max(min(sum(sizes) // 20, SMALL_BYTES), SMALL_ROWS * row_tokens * 4)
    bounds, begun = [0], 0  # begun: bytes of the group that is open
    for number, size in enumerate(sizes):
        if begun >= enough:
            bounds.append(number)
            begun = 0
        begun += size
    if len(bounds) == 1 and len(sizes) > 1:
        bounds.append(len(sizes) - 1)
    return [range(*ends) for ends in itertools.pairwise([*bounds, len(sizes)])]


def _batches(texts: TextFiles) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    """NumPy leaves room in it for any first dimension."""
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
