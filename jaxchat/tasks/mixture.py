"""Several data sets as one: each shuffled by itself, all interleaved, fixed by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jaxchat.tasks.dataset import Dataset
from jaxchat.tokenizer.chat_format import Conversation

_MAX = 2**31  # rows are counted in 32 bits


@dataclass(frozen=True)
class Ingredient:
    """An amount of a data set: a number of its rows (None: all), for a number of epochs.

    Rows are taken at random; a data set that has fewer gives all it has. With 2.5 epochs each of
    them comes twice, and half of them a third time.
    """

    dataset: Dataset
    rows: int | None = None
    epochs: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for an empty amount."""
        if not 0 < self.epochs < _MAX or (self.rows is not None and self.rows < 1):
            raise ValueError(
                f"{self.rows} rows and {self.epochs} epochs of {self.dataset.name}; both must be "
                "greater than 0."
            )

    @property
    def distinct(self) -> int:
        """Different rows that one epoch has."""
        size = len(self.dataset)
        return size if self.rows is None else min(self.rows, size)

    @property
    def count(self) -> int:
        """Conversations in all."""
        return round(self.epochs * self.distinct)

    def order(self, seed: int) -> npt.NDArray[np.int32]:
        """[count] the rows in the order of use: every epoch is a new permutation.

        That of the first is NumPy's default generator with the seed: for 42 it is the order in
        which nanochat has the rows of any data set.
        """
        chosen = _permutation(seed, 0, len(self.dataset))[: self.distinct]
        epochs = [chosen]
        for epoch in range(1, -(-self.count // max(self.distinct, 1))):
            epochs.append(chosen[_permutation(seed, epoch, self.distinct)])
        return np.concatenate(epochs)[: self.count]


def _permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int32]:
    # a seed sequence is filled up with zeros: [seed, 0] is the same as seed alone
    return np.random.default_rng([seed, epoch]).permutation(size).astype(np.int32)


class Mixture:
    """The conversations of all ingredients, by index.

    Every stretch from the beginning has each ingredient in its share of the whole, to within a
    conversation or two, and an ingredient's rows keep their shuffled order.
    """

    def __init__(self, ingredients: Sequence[Ingredient], seed: int) -> None:
        """Raises ValueError for no conversation at all. Reads no conversation yet."""
        self.ingredients = tuple(ingredients)
        counts = [ingredient.count for ingredient in self.ingredients]
        if not sum(counts):
            raise ValueError("a mixture needs at least one conversation; its data sets have none.")
        self._which = interleave(counts)
        self._row = np.empty(len(self._which), np.int32)
        for number, ingredient in enumerate(self.ingredients):
            self._row[self._which == number] = ingredient.order(seed)

    def __len__(self) -> int:
        """Conversations of all ingredients, repetitions included."""
        return len(self._which)

    def place(self, index: int) -> tuple[Dataset, int]:
        """The data set of a conversation, and the index in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of a mixture of {len(self)}")
        return self.ingredients[self._which[index]].dataset, int(self._row[index])

    def conversation(self, index: int) -> Conversation:
        """One conversation. Raises IndexError outside, and what its data set raises."""
        dataset, row = self.place(index)
        return dataset.conversation(row)

    def __iter__(self) -> Iterator[Conversation]:
        return map(self.conversation, range(len(self)))


def interleave(counts: Sequence[int]) -> npt.NDArray[np.int16]:
    """[sum of counts] which of several things comes at each place, spread evenly.

    Item k of n stands at (k + 1/2) / n of the way; things at one place keep their order. So the
    number of things i up to any place differs from its share s_i of that place by less than
    (1 + s_i * the number of things) / 2.
    """
    which = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return which[np.argsort(places, kind="stable")]
