"""Reading shards without end: every row once a pass, in an order that only the seed decides."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from handed_over import HandedOver
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import ROW, TOKENIZER, contents, prepare, write_texts

from jaxchat.data import loader
from jaxchat.data.loader import (
    HeldOutRows,
    ShardedRows,
    permutation,
    prefetched,
    training_batches,
    validation_batches,
)
from jaxchat.data.shard_folder import ShardFolder
from jaxchat.errors import ArtifactError
from jaxchat.paths import write_json

WINDOW = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards to train on, in windows of two, two and one, and one that is held out."""
    folder = tmp_path_factory.mktemp("shards")
    prepare(write_texts(folder / "text"), folder / "out")
    return folder / "out"


@pytest.fixture
def source(whole: Path) -> ShardedRows:
    return ShardedRows(whole, TOKENIZER.hash, window=WINDOW)


def test_batches_are_arrays_of_their_own(source: ShardedRows) -> None:
    batches, handed = training_batches(source, 8, 0), HandedOver()
    for step in range(5):
        handed.note(batches[step])
    handed.check(calls=5)


def shard(folder: Path, number: int) -> np.ndarray:
    array: np.ndarray = np.load(folder / f"shard_{number:05d}.npy")
    return array


def as_set(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in rows.astype(np.int32)}


def copied(whole: Path, folder: Path, names: str = "*") -> Path:
    """A folder that is whole up to the files that `names` leaves out; manifests come last."""
    folder.mkdir(exist_ok=True)
    found = sorted(whole.glob(names), key=lambda path: path.suffix == ".json")
    for path in [whole / "manifest.json", *found]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_pass_has_every_row_once_window_by_window(source: ShardedRows, whole: Path) -> None:
    first = 0
    for numbers in ((0, 1), (2, 3), (4,)):
        there = np.concatenate([shard(whole, n) for n in numbers])
        taken = source.take(np.arange(first, first + len(there)), seed=3)
        assert sorted(map(bytes, taken)) == sorted(map(bytes, there.astype(np.int32)))
        assert (taken != there).any(), "not shuffled"
        first += len(there)
    assert len(source) == first
    assert not as_set(shard(whole, 5)) & as_set(source.take(np.arange(first), 3)), "held out"


def test_each_pass_and_each_seed_has_its_own_order(source: ShardedRows) -> None:
    n = len(source)
    one = source.take(np.arange(2 * n), seed=3)
    other = source.take(np.arange(n), seed=4)
    assert sorted(map(bytes, one[:n])) == sorted(map(bytes, one[n:])) == sorted(map(bytes, other))
    assert (one[:n] != one[n:]).any()
    assert (one[:n] != other).any()


@settings(max_examples=20)
@given(data=st.data())
def test_an_index_means_the_same_row_however_it_is_asked_for(
    whole: Path, data: st.DataObject
) -> None:
    source = ShardedRows(whole, TOKENIZER.hash, window=WINDOW)
    n = len(source)
    everything = source.take(np.arange(3 * n), 7)
    asked = data.draw(st.lists(st.integers(0, 3 * n - 1), min_size=1, max_size=30))
    fresh = ShardedRows(whole, TOKENIZER.hash, window=WINDOW)
    assert (fresh.take(np.array(asked), 7) == everything[asked]).all()


def test_the_processes_batches_together_are_that_of_one(source: ShardedRows) -> None:
    whole_batches = training_batches(source, 8, seed=1)
    for processes in (2, 4, 8):
        shares = [training_batches(source, 8, 1, p, processes) for p in range(processes)]
        for step in (0, 1, 57, 1_000_000):
            parts = np.stack([share[step]["tokens"] for share in shares], axis=1)
            assert parts.shape == (8 // processes, processes, ROW)
            assert (parts.reshape(8, ROW) == whole_batches[step]["tokens"]).all()
            assert (shares[0][step]["mask"] == 1).all()


def test_going_on_with_two_processes_instead_of_eight_skips_and_repeats_nothing(
    whole: Path,
) -> None:
    def batches(processes: int, steps: range) -> list[np.ndarray]:
        """What the processes read together, each with a source and a reading thread of its own."""
        parts = []
        for process in range(processes):
            source = ShardedRows(whole, TOKENIZER.hash, window=WINDOW)
            share = training_batches(source, 16, 5, process, processes)
            with prefetched(lambda step, share=share: share[step]["tokens"], steps) as ready:
                parts.append(list(ready))
        together = [np.stack(one, axis=1).reshape(16, ROW) for one in zip(*parts, strict=True)]
        assert len(together) == len(steps)
        return together

    n = len(ShardedRows(whole, TOKENIZER.hash, window=WINDOW))
    steps = 2 * n // 16 + 1  # beyond the second pass
    resharded = batches(8, range(20)) + batches(2, range(20, steps))
    uninterrupted = batches(1, range(steps))
    assert all((a == b).all() for a, b in zip(resharded, uninterrupted, strict=True))
    once = np.concatenate(uninterrupted)[:n]
    everything = np.concatenate([shard(whole, number) for number in range(5)])
    assert sorted(map(bytes, once)) == sorted(map(bytes, everything.astype(np.int32)))


def test_what_is_ready_can_be_taken_though_later_shards_never_come(
    whole: Path, tmp_path: Path
) -> None:
    """Training may end before all text is prepared, and what it read is measured afterwards."""
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    everything = ShardedRows(whole, TOKENIZER.hash, window=WINDOW)
    assert everything.ready() == len(everything)
    (folder / "shard_00003.json").unlink()  # of the second window of two
    source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW)
    with pytest.raises(ArtifactError, match="not prepared yet"):
        len(source)
    assert source.ready() == sum(len(shard(whole, number)) for number in range(WINDOW))
    places = np.arange(source.ready())
    assert (source.take(places, 7) == everything.take(places, 7)).all()
    (folder / "shard_00001.json").unlink()
    assert ShardedRows(folder, TOKENIZER.hash, window=WINDOW).ready() == 0


def test_the_held_out_rows_are_the_last_files_in_order(whole: Path) -> None:
    held_out = HeldOutRows(whole, TOKENIZER.hash)
    expected = shard(whole, 5)
    assert len(held_out) == len(expected)
    assert (held_out[3]["tokens"].dtype, held_out[3]["mask"].dtype) == ("i4", "f4")
    batches = list(validation_batches(held_out, 4, 10))
    assert np.concatenate([b["tokens"] for b in batches]).tolist() == expected[:8].tolist()


# ----- shards that are still appearing -----


def test_training_begins_with_the_first_window_and_waits_for_the_next(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PLAIN_INTERVAL", 0.3)
    folder = copied(whole, tmp_path / "out", "shard_0000[01].*")
    source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW, alive=lambda: None)
    expected = ShardedRows(whole, TOKENIZER.hash, window=WINDOW)
    first = len(shard(whole, 0)) + len(shard(whole, 1))
    assert (source.take(np.arange(first), 0) == expected.take(np.arange(first), 0)).all()
    assert "waiting" not in capsys.readouterr().err

    got: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: got.append(source.take(np.arange(first + 9), 0)))
    reader.start()
    began, reported = time.monotonic(), ""
    while reported.count("\n") < 3:
        assert time.monotonic() < began + 30, f"it does not say what it waits for: {reported!r}"
        time.sleep(0.05)
        reported += capsys.readouterr().err
    assert time.monotonic() > began + 0.5, "it says so too often"
    assert all(
        line.startswith("waiting for shard 3 of 6 (c.jsonl), ")
        for line in reported.split("\n")[:-1]
    )
    assert reader.is_alive()
    assert not got
    copied(whole, folder, "*.npy")
    for path in sorted(whole.glob("shard_0000[23].json")):  # each whole before it is declared so
        (folder / path.name).write_bytes(path.read_bytes())
    reader.join(10)
    assert (got[0] == expected.take(np.arange(first + 9), 0)).all()


def test_shards_that_are_not_made_any_more_are_reported(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "out", "shard_0000[01].*")
    for alive, reason in [
        (None, "they are not being prepared"),
        (lambda: "process 7 was killed", "process 7"),
    ]:
        source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW, alive=alive)
        source.take(np.arange(5), 0)
        said = rf"shard 3 of 6 \(c\.jsonl\) is missing and will not come \({reason}.*again"
        with pytest.raises(ArtifactError, match=said):
            source.take(np.array([10_000]), 0)
    with pytest.raises(ArtifactError, match=r"manifest of the shards .* will not come"):
        ShardedRows(tmp_path / "nowhere", TOKENIZER.hash)


def test_what_was_made_last_is_found_though_its_maker_has_ended(
    whole: Path, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "out", "shard_0000[01].*")

    def alive() -> str:
        copied(whole, folder, "shard_0000[!01].*")  # it makes the rest, and ends
        return "it is done"

    source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW, alive=alive)
    assert len(source.take(np.array([10_000]), 0)) == 1


def test_how_many_rows_a_pass_has_is_not_known_while_shards_are_missing(
    whole: Path, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path / "out", "shard_0000[01].*")
    source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW, alive=lambda: None)
    with pytest.raises(ArtifactError, match=r"3 of 5 shards .* set base\.steps"):
        len(source)


# ----- damage -----


def test_a_damaged_shard_is_reported_when_it_is_first_used(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "out")
    path = folder / "shard_00003.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    source = ShardedRows(folder, TOKENIZER.hash, window=WINDOW)
    first = len(shard(whole, 0)) + len(shard(whole, 1))
    source.take(np.arange(first), 0)
    with pytest.raises(ArtifactError, match=r"shard_00003\.npy, shard 4 of 6 .* is missing or dam"):
        source.take(np.arange(first, len(source)), 0)


def test_shards_of_another_tokenizer_are_refused(whole: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"tokenizer {TOKENIZER.hash[:12]}, not another"):
        ShardedRows(whole, "another")


def test_shards_without_any_row_are_refused_not_read_for_ever(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "out", "manifest.json")
    empty = ShardFolder(folder)
    for number in range(5):
        np.save(empty.file(number), np.zeros((0, ROW), np.uint16))
        manifest = ShardFolder(whole).read_manifest(number)
        assert manifest is not None
        statistics = {"documents": 0, "tokens": 0, "kept": 0, "bos": 0, "rows": 0}
        value = {**vars(manifest), "input": vars(manifest.input), "statistics": statistics}
        write_json(empty.file(number).with_suffix(".json"), value)
    with pytest.raises(ArtifactError, match="hold no rows"):
        ShardedRows(folder, TOKENIZER.hash).take(np.array([0]), 0)
    assert len(contents(folder)) == 11


# ----- the order -----


@pytest.mark.parametrize("size", [0, 1, 2, 1_000])
def test_a_permutation_has_each_place_once(size: int) -> None:
    assert sorted(permutation(size, 1, 2, 3).tolist()) == list(range(size))


def test_permutations_of_near_keys_have_nothing_in_common() -> None:
    seen = [
        permutation(1_000, *key) for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 2, 0)]
    ]
    for i, a in enumerate(seen):
        assert abs(np.corrcoef(a, np.arange(1_000))[0, 1]) < 0.15
        for b in seen[:i]:
            assert (a == b).sum() < 10, "of 1,000 places one is the same by chance"
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_the_order_of_a_seed_never_changes() -> None:
    said = "another order: runs that are resumed would see other data; raise the shards' format"
    assert permutation(10, 42, 0, 1).tolist() == GOLDEN, said


GOLDEN = [2, 4, 8, 5, 0, 7, 6, 3, 1, 9]
