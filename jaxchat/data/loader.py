"""Batches of rows: out of a folder of shards, which may still be growing, or of a folder of rows.

Rows of shards are shuffled within windows of consecutive shards, and the windows come in their
order, so that training can begin when the first window is whole. Which row an index means depends
on the seed alone: not on time, on restarts or on the number of processes.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import grain
import numpy as np
import numpy.typing as npt

from jaxchat.data import shard_folder
from jaxchat.data.shard_folder import ShardFolder, ShardManifest
from jaxchat.errors import ArtifactError
from jaxchat.progress import PLAIN_INTERVAL

WINDOW = 8  # shards
ORDERS = 4  # windows whose order stays in memory
POLL = 0.2  # seconds
PATIENCE = 3.0  # seconds of waiting before it is reported
AHEAD = 2  # batches that are ready while a step runs

# Returns why missing shards will never come; None while they are being prepared.
Alive = Callable[[], str | None]
Found = TypeVar("Found")
Batch = TypeVar("Batch")
Indices = npt.NDArray[np.int64]


class Shards(ShardFolder):
    """The shards of a folder, waited for and checked when they are first used.

    Safe to share between threads.
    """

    def __init__(self, path: Path, tokenizer_hash: str, alive: Alive | None = None) -> None:
        """Waits for the folder's manifest. Raises ArtifactError for one of another tokenizer."""
        self._alive = alive or (lambda: "they are not being prepared")
        there = (path / shard_folder.MANIFEST).exists
        self._wait(lambda: there() or None, f"the manifest of the shards in {path}")
        super().__init__(path)
        if self.manifest.tokenizer != tokenizer_hash:
            raise ArtifactError(
                f"the shards in {path} are of tokenizer {self.manifest.tokenizer[:12]}, not "
                f"{tokenizer_hash[:12]}; prepare them again into another folder."
            )
        self._manifests: dict[int, ShardManifest] = {}
        self._arrays: dict[int, np.ndarray] = {}
        self._ahead: set[range] = set()
        self._lock = threading.Lock()

    def known(self, number: int) -> ShardManifest | None:
        """The manifest of a shard; None while it is not there."""
        if number not in self._manifests:
            manifest = self.read_manifest(number)
            if manifest is None:
                return None
            self._manifests[number] = manifest
        return self._manifests[number]

    def rows(self, number: int) -> int:
        """How many rows a shard has, waiting until it is there."""
        return self._wait(functools.partial(self.known, number), self.name(number)).statistics.rows

    def array(self, number: int) -> np.ndarray:
        """The rows of a shard [N, T+1], memory-mapped. Raises ArtifactError when it is damaged."""
        self.rows(number)
        if number not in self._arrays:
            with self._lock:
                if number not in self._arrays:
                    manifest = self._manifests[number]
                    self.check(number, manifest)
                    self._arrays[number] = self.load(number, manifest)
        return self._arrays[number]

    def open_ahead(self, numbers: range) -> None:
        """Checks, in a thread and once, those of the shards that are there: it takes 0.1 s each."""
        with self._lock:
            if numbers in self._ahead:
                return
            self._ahead.add(numbers)

        def check() -> None:
            for number in numbers:
                try:
                    if self.known(number) is not None:
                        self.array(number)
                except (ArtifactError, OSError):
                    return  # raised again when it is used

        threading.Thread(target=check, name="checksums", daemon=True).start()

    def _wait(self, look: Callable[[], Found | None], what: str) -> Found:
        began = time.monotonic()
        report = began + min(PATIENCE, PLAIN_INTERVAL)
        while True:
            ended = self._alive()  # before looking: what it made last is found
            if (found := look()) is not None:
                return found
            if ended is not None:
                raise ArtifactError(
                    f"{what} is missing and will not come ({ended}); {shard_folder.AGAIN}."
                )
            if (now := time.monotonic()) >= report:
                report = now + PLAIN_INTERVAL
                print(f"waiting for {what}, {now - began:.0f}s", file=sys.stderr, flush=True)
            time.sleep(POLL)


class ShardedRows:
    """The rows of all shards but the held-out one, pass after pass, without end."""

    def __init__(
        self,
        folder: Path,
        tokenizer_hash: str,
        *,
        window: int = WINDOW,
        alive: Alive | None = None,
    ) -> None:
        """Opens a folder that `prepare_shards` fills or has filled.

        Rows are shuffled within `window` consecutive shards. Where shards are missing they are
        waited for as long as `alive` returns None; without it, they are an error.
        """
        self.shards = Shards(folder, tokenizer_hash, alive)
        self.manifest = self.shards.manifest
        numbers = range(self.manifest.validation)
        self._windows = [numbers[i : i + window] for i in range(0, len(numbers), window)]
        self._starts = [0]  # of the windows whose shards are there, and the end of the last one
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Rows of one pass. Raises ArtifactError while shards are missing."""
        numbers = range(self.manifest.validation)
        missing = sum(self.shards.known(number) is None for number in numbers)
        if missing:
            raise ArtifactError(
                f"{missing} of {len(numbers)} shards in {self.shards.path} are not "
                "prepared yet, so the number of rows in a pass is unknown; set base.steps, or "
                "wait until they are."
            )
        return sum(map(self.shards.rows, numbers))

    def ready(self) -> int:
        """Rows of a pass that can be taken now: those of the windows that are there from the first.

        A run that trains on fewer rows than it has shards for never prepares the last ones.
        """
        rows = 0
        for numbers in self._windows:
            if any(self.shards.known(number) is None for number in numbers):
                break
            rows += sum(map(self.shards.rows, numbers))
        return rows

    def take(self, indices: Indices, seed: int) -> npt.NDArray[np.int32]:
        """The rows [n, T+1] at n places of the order that the seed gives, each place >= 0."""
        rows = np.empty((len(indices), self.manifest.row_tokens), np.int32)
        left = np.arange(len(indices))
        while left.size:  # once for each window that the indices are in: once, nearly always
            turn, window, first, size = self._find(int(indices[left].min()))
            inside = indices[left] < first + size
            chosen = left[inside]
            self.shards.open_ahead(self._windows[(window + 1) % len(self._windows)])
            order = permutation(size, seed, turn, window)
            self._gather(window, order[indices[chosen] - first], rows, chosen)
            left = left[~inside]
        return rows

    def _find(self, index: int) -> tuple[int, int, int, int]:
        """(pass, window, index of the window's first row, its rows) of an index."""
        with self._lock:
            while index >= self._starts[-1] and len(self._starts) <= len(self._windows):
                numbers = self._windows[len(self._starts) - 1]
                self._starts.append(self._starts[-1] + sum(map(self.shards.rows, numbers)))
            # Beyond the first pass, all shards have been seen.
            total = self._starts[-1]
            if total == 0:
                raise ArtifactError(f"the shards in {self.shards.path} hold no rows.")
            turn, place = divmod(index, total)
            window = bisect.bisect_right(self._starts, place) - 1
            size = self._starts[window + 1] - self._starts[window]
            return turn, window, turn * total + self._starts[window], size

    def _gather(self, window: int, places: Indices, rows: np.ndarray, into: Indices) -> None:
        """Writes the rows at `places` of a window to rows[into]."""
        numbers = self._windows[window]
        ends = list(itertools.accumulate(map(self.shards.rows, numbers)))
        shards = np.searchsorted(ends, places, side="right")
        for n in np.unique(shards):
            here = shards == n
            first = ends[n - 1] if n else 0
            rows[into[here]] = self.shards.array(numbers[n])[places[here] - first]


class Rows:
    """A random-access Grain source of rows: {"tokens": [T+1], "mask": [T+1]}."""

    def __init__(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Arrays of [N, T+1]; without a mask, every token has the weight 1."""
        self.tokens, self.mask = tokens, mask

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        tokens = np.asarray(self.tokens[index], dtype=np.int32)
        if self.mask is None:
            return {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}
        return {"tokens": tokens, "mask": np.asarray(self.mask[index], dtype=np.float32)}


class RowSource(Rows):
    """The rows of a folder that `write_rows` wrote."""

    def __init__(self, folder: Path, tokenizer_hash: str) -> None:
        """Raises ArtifactError when the folder is damaged or of another tokenizer."""
        self.manifest, tokens, mask = shard_folder.open_rows(folder, tokenizer_hash)
        super().__init__(tokens, mask)


class HeldOutRows(Rows):
    """The rows of the held-out shard, in order."""

    def __init__(self, folder: Path, tokenizer_hash: str, *, alive: Alive | None = None) -> None:
        """Waits for the shard while `alive` returns None. Raises ArtifactError when damaged."""
        shards = Shards(folder, tokenizer_hash, alive)
        self.manifest = shards.manifest
        super().__init__(shards.array(self.manifest.validation))

    def ready(self) -> int:
        """All rows."""
        return len(self)

    def take(self, indices: Indices, seed: int) -> npt.NDArray[np.int32]:
        """The rows [n, T+1] at those of the places that there are, not shuffled by any seed."""
        del seed
        return np.asarray(self.tokens[indices[indices < len(self)]], np.int32)


class _EndlessBatches:
    """A Grain source whose item `n` is a process's share of the batch of step `n`.

    Gathering a batch at once is many times faster than row by row (bench/data.py).
    """

    def __init__(
        self, source: ShardedRows, rows: int, seed: int, process: int, processes: int
    ) -> None:
        self.source, self.rows, self.seed = source, rows, seed
        self.share = np.arange(process, rows, processes)

    def __len__(self) -> int:
        return 1 << 40  # steps: as good as endless

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        tokens = self.source.take(step * self.rows + self.share, self.seed)
        return {"tokens": tokens, "mask": np.ones(tokens.shape, np.float32)}


def training_batches(
    source: RowSource | ShardedRows, rows: int, seed: int, process: int = 0, processes: int = 1
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
    if there < rows:
        filled = [source[place % there] for place in range(rows)]
        tokens, mask = (np.stack([row[name] for row in filled]) for name in ("tokens", "mask"))
        mask[there:] = 0
        source, there = Rows(tokens, mask), rows
    dataset: Any = grain.MapDataset.source(source)
    return dataset[: there // rows * rows][process::processes].batch(rows // processes)


def _check_share(rows: int, processes: int) -> None:
    if rows % processes:
        raise ValueError(f"{rows} rows a step do not divide by {processes} processes.")


@contextlib.contextmanager
def prefetched(
    batch_of: Callable[[int], Batch],
    steps: range,
    *,
    ahead: int = AHEAD,
    give_up: Callable[[], object] = lambda: False,
) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over `batch_of(step)` for the steps in order, made ahead by a thread.

    `batch_of` reads a batch and puts it on the device. An error is raised where its batch is asked
    for. The iterator ends early when no batch is ready and `give_up` returns true: a stage that has
    to stop need not wait for data.
    """
    ready: queue.Queue[Future[Batch]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def read() -> None:
        for step in steps:
            made: Future[Batch] = Future()
            try:
                made.set_result(batch_of(step))
            except BaseException as error:
                made.set_exception(error)
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(made, timeout=POLL)
                    break
            if stop.is_set() or made.exception():
                return

    def batches() -> Iterator[Batch]:
        for _ in steps:
            while True:
                try:
                    made = ready.get(timeout=POLL)
                    break
                except queue.Empty:
                    if give_up():
                        return
            yield made.result()

    thread = threading.Thread(target=read, name="batches", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        stop.set()
        thread.join(timeout=1.0)  # a batch that waits for its data is not waited for


@functools.lru_cache(maxsize=ORDERS)
def permutation(size: int, *key: int) -> Indices:
    """An order of 0..size-1 that depends on the key alone, on every machine and NumPy.

    The places are sorted by their hash, SplitMix64 (Steele, Lea, Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014).
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for part in key:
            state = _mix(state + np.uint64(part % (1 << 64)) + _GOLDEN)
        places = np.arange(1, size + 1, dtype=np.uint64)
        return np.argsort(_mix(state + places * _GOLDEN), kind="stable")


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One to one over the 64-bit integers, so that no two places have the same hash."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
