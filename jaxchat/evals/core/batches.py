"""Rows of many lengths as batches of few shapes: each shape is compiled once.

Axes: B rows, P positions of the trunk, R of all branches of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxchat.evals.core.prompts import Row
from jaxchat.model.backend import bucket

SMALLEST = 32  # positions of a trunk, and of branches

Shape = tuple[int, int]  # P, R


@dataclass(frozen=True)
class Batch:
    """Arrays of one forward pass, and the rows they were made from, in order.

    `tokens` [B,P+R]; `lengths` [B] of the trunks; `branch` and `positions` [B,R] as
    `model.branches` wants them. What is scored is packed for each shard, a part of B: `at` and
    `targets` [B,R], read as one list, are the scored tokens, and where in the shard's `tokens`,
    read as one list, the feature is that predicts it; `count` [B] is, in each row, their number.
    Rows beyond those given are empty.
    """

    rows: tuple[Row, ...]
    shards: int
    arrays: dict[str, np.ndarray]

    def split(self, values: np.ndarray) -> Iterator[tuple[Row, list[np.ndarray]]]:
        """Splits [B,R] values, laid out as `targets`, into those of each row and branch."""
        flat = values.reshape(self.shards, -1)
        size = len(values) // self.shards  # rows of a shard
        for first in range(0, len(self.rows), size):
            place = 0
            for row in self.rows[first : first + size]:
                ends = place + np.cumsum(row.scored)
                yield row, np.split(flat[first // size, place : ends[-1]], ends[:-1] - place)
                place = ends[-1]


def make_batches(
    rows: Sequence[Row], *, tokens: int, steps: int = 2, shards: int = 1, copies: bool = False
) -> Iterator[Batch]:
    """Batches of about `tokens` tokens a shard, of a multiple of `shards` rows, longest rows first.

    `steps`: sizes of trunks from one power of two to the next. With more of them there is less
    padding and more to compile. `copies`: each branch gets a copy of the trunk's last token before
    it, as a model with smear needs.
    """
    for (trunk, branches), group in _groups(rows, tokens, steps, shards, int(copies)):
        size = _batch_rows((trunk, branches), tokens, shards)
        while size > shards and size // 2 >= len(group):  # a few rows are no whole batch
            size = -(-size // (2 * shards)) * shards
        for first in range(0, len(group), size):
            part = group[first : first + size]
            yield _batch(part, size, (trunk, branches), shards, int(copies))


def _batch_rows(shape: Shape, tokens: int, shards: int) -> int:
    return shards * max(1, tokens // sum(shape))


def _groups(
    rows: Sequence[Row], tokens: int, steps: int, shards: int, extra: int
) -> list[tuple[Shape, list[Row]]]:
    """Rows by shape, largest first.

    What is less than half a batch goes to a larger shape that is there anyway.
    """
    groups: dict[Shape, list[Row]] = {}
    for row in rows:
        branches = bucket(row.size + extra * len(row.branches), SMALLEST)
        trunk = bucket(len(row.trunk), SMALLEST, steps=steps)
        groups.setdefault((trunk, branches), []).append(row)
    shapes = sorted(groups)
    for number, shape in enumerate(shapes):
        size = _batch_rows(shape, tokens, shards)
        left = len(groups[shape]) % size
        larger = next((s for s in shapes[number + 1 :] if s[1] >= shape[1]), None)
        if larger is not None and 0 < left <= size // 2:
            groups[larger] += groups[shape][-left:]
            del groups[shape][-left:]
    return [(shape, groups[shape]) for shape in reversed(shapes)]


def _batch(rows: Sequence[Row], count: int, shape: Shape, shards: int, extra: int) -> Batch:
    trunk, branches = shape
    arrays = {
        "tokens": np.zeros((count, trunk + branches), np.int32),
        "lengths": np.ones(count, np.int32),
        "branch": np.full((count, branches), -1, np.int32),
        "positions": np.zeros((count, branches), np.int32),
        "at": np.zeros((count, branches), np.int32),
        "targets": np.zeros((count, branches), np.int32),
        "count": np.zeros(count, np.int32),
    }
    batch, size = Batch(tuple(rows), shards, arrays), count // shards
    for first in range(0, len(rows), size):
        at, targets = list[np.ndarray](), list[np.ndarray]()
        for number, row in enumerate(rows[first : first + size]):
            one = {name: array[first + number] for name, array in arrays.items()}
            places = _fill(one, row, trunk, extra)
            at += [number * (trunk + branches) + place for place in places]
            targets += [b[start:] for b, start in zip(row.branches, row.starts, strict=True)]
            arrays["lengths"][first + number] = len(row.trunk)
        shard = slice(first, first + size)
        for name, values in (("at", np.concatenate(at)), ("targets", np.concatenate(targets))):
            arrays[name][shard].reshape(-1)[: len(values)] = values
            arrays["count"][shard] = len(values)
    return batch


def _fill(arrays: dict[str, np.ndarray], row: Row, trunk: int, extra: int) -> list[np.ndarray]:
    """Writes one row; of each branch, where the features are that predict what is scored."""
    length, place = len(row.trunk), 0
    arrays["tokens"][:length] = row.trunk
    found = []
    for number, (branch, start) in enumerate(zip(row.branches, row.starts, strict=True)):
        arrays["tokens"][trunk + place : trunk + place + extra] = row.trunk[-1]
        place += extra
        stop = place + len(branch)
        arrays["tokens"][trunk + place : trunk + stop] = branch
        arrays["branch"][place:stop] = number
        arrays["positions"][place:stop] = np.arange(length, length + len(branch))
        before = np.arange(trunk + place - 1, trunk + stop - 1)
        before[:1] = length - 1  # the first token of a branch is predicted by the trunk's last
        found.append(before[start:])
        place = stop
    return found
