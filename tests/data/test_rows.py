"""Rows on disk: what comes back, what is refused, and which rows a step takes."""

import functools
import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxchat.data.loader import RowSource, training_batches, validation_batches
from jaxchat.data.shard_folder import write_rows
from jaxchat.errors import ArtifactError
from jaxchat.paths import read_json, write_json

N, ROW = 23, 5
TOKENS = np.arange(N * ROW, dtype=np.uint16).reshape(N, ROW)
MASK = (TOKENS % 3 == 0).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows", TOKENS, MASK, "hash of a tokenizer")
    return tmp_path / "rows"


@pytest.fixture
def source(folder: Path) -> RowSource:
    return RowSource(folder, "hash of a tokenizer")


def firsts(batch: dict[str, np.ndarray]) -> list[int]:
    """Which rows a batch holds."""
    return [int(row[0]) // ROW for row in batch["tokens"]]


def test_rows_and_masks_come_back(source: RowSource) -> None:
    assert len(source) == N
    for index in (0, 7, N - 1):
        assert source[index]["tokens"].tolist() == TOKENS[index].tolist()
        assert source[index]["mask"].tolist() == MASK[index].tolist()
        assert (source[index]["tokens"].dtype, source[index]["mask"].dtype) == ("i4", "f4")
    assert source.manifest.trained_tokens == MASK.sum()
    assert (source.manifest.rows, source.manifest.row_tokens) == (N, ROW)


def test_text_without_a_mask_counts_every_token(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path / "rows", TOKENS, None, "hash")
    assert manifest.trained_tokens == TOKENS.size
    assert RowSource(tmp_path / "rows", "hash")[3]["mask"].tolist() == [1.0] * ROW


def test_weights_come_back_as_they_were_and_masks_of_0_and_1_stay_bytes(tmp_path: Path) -> None:
    weights = MASK * np.linspace(0.5, 3, MASK.size, dtype=np.float32).reshape(MASK.shape)
    manifest = write_rows(tmp_path / "weights", TOKENS, weights, "hash")
    assert manifest.trained_tokens == MASK.sum(), "it is a count of tokens, not a sum of weights"
    source = RowSource(tmp_path / "weights", "hash")
    assert source[2]["mask"].dtype == np.float32
    np.testing.assert_array_equal(source[2]["mask"], weights[2])
    floats = write_rows(tmp_path / "floats", TOKENS, MASK.astype(np.float32), "hash")
    assert floats == write_rows(tmp_path / "bytes", TOKENS, MASK, "hash"), "other files, other hash"
    assert np.load(tmp_path / "floats" / "mask.npy").dtype == np.uint8


def test_no_rows_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no rows to write to rows"):
        write_rows(tmp_path / "rows", TOKENS[:0], None, "hash")
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("name", ["tokens.npy", "mask.npy"])
@pytest.mark.parametrize("place", [0, 60, -1])
def test_one_flipped_bit_is_found(folder: Path, name: str, place: int) -> None:
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name} is missing or damaged .* --force rows"):
        RowSource(folder, "hash of a tokenizer")


@pytest.mark.parametrize("name", ["tokens.npy", "mask.npy"])
def test_a_missing_file_is_found(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name} is missing or damaged"):
        RowSource(folder, "hash of a tokenizer")


def test_rows_of_another_tokenizer_are_refused_with_both_names(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer hash of a to.*not .* another"):
        RowSource(folder, "another")


def damaged_manifests() -> Iterator[tuple[str, object]]:
    yield "rows", N + 1
    yield "rows", "many"
    yield "row_tokens", ROW + 1
    yield "format", "jaxchat-rows-0"
    yield "checksums", {}
    yield "surprise", 1


@pytest.mark.parametrize(("key", "value"), list(damaged_manifests()))
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, key: str, value: object) -> None:
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {key: value})
    with pytest.raises(ArtifactError, match=r"--force rows"):
        RowSource(folder, "hash of a tokenizer")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": '])
def test_a_manifest_that_is_none_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json is no rows manifest .* --force rows"):
        RowSource(folder, "hash of a tokenizer")


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"manifest\.json does not exist\); make the rows again"
    ):
        RowSource(tmp_path, "hash")


def test_a_steps_batch_depends_on_its_number_alone(source: RowSource) -> None:
    one = training_batches(source, 4, seed=3)
    in_order = [firsts(one[step]) for step in range(12)]
    again = training_batches(source, 4, seed=3)
    assert [firsts(again[step]) for step in reversed(range(12))] == in_order[::-1]
    assert firsts(again[10_000]) == firsts(one[10_000])
    assert [firsts(training_batches(source, 4, seed=4)[step]) for step in range(12)] != in_order


def test_an_epoch_has_every_row_once_and_the_next_another_order(source: RowSource) -> None:
    batches = training_batches(source, 1, seed=0)
    first, second = ([firsts(batches[N * e + i])[0] for i in range(N)] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_batches_together_are_that_of_one(source: RowSource, processes: int) -> None:
    whole = training_batches(source, 8, seed=1)
    shares = [training_batches(source, 8, 1, process, processes) for process in range(processes)]
    for step in range(9):
        parts = [firsts(share[step]) for share in shares]
        assert all(len(part) == 8 // processes for part in parts)
        assert sorted(functools.reduce(operator.iadd, parts, [])) == sorted(firsts(whole[step]))


def test_rows_that_do_not_divide_by_the_processes_are_refused(source: RowSource) -> None:
    with pytest.raises(ValueError, match="5 rows a step do not divide by 2 processes"):
        training_batches(source, 5, 0, 0, 2)


def test_validation_takes_the_first_rows_in_order_in_whole_batches(source: RowSource) -> None:
    assert [firsts(b) for b in validation_batches(source, 4, 10)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(list(validation_batches(source, 4, 1000))) == N // 4


@pytest.mark.parametrize(("rows", "limit", "there"), [(24, 1000, 23), (4, 3, 3), (8, 1, 1)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_fewer_validation_rows_than_a_batch_are_one_batch_that_is_filled_up_with_masked_ones(
    source: RowSource, rows: int, limit: int, there: int, processes: int
) -> None:
    found = []
    for process in range(processes):
        (batch,) = validation_batches(source, rows, limit, process, processes)
        assert batch["tokens"].shape[0] == rows // processes
        counted = batch["mask"].any(axis=1)
        found += batch["tokens"][counted, 0].tolist()
    assert sorted(found) == [int(source[n]["tokens"][0]) for n in range(there)]


def test_no_validation_row_at_all_is_refused(source: RowSource) -> None:
    with pytest.raises(ArtifactError, match="not one held-out row"):
        validation_batches(source, 4, 0)
