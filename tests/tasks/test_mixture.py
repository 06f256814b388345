"""Mixtures: every row as often as asked, every stretch with the right shares, fixed by a seed."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hub_files import CHATS, GSM8K_ROWS, jsonl, parquet
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.tasks import make_tasks, open_source
from jaxchat.tasks.base import say
from jaxchat.tasks.dataset import drawn
from jaxchat.tasks.mixture import Ingredient, Mixture, interleave
from jaxchat.tokenizer.chat_format import Conversation


class Numbers:
    """Conversations that say their data set and their number."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def conversation(self, index: int) -> Conversation:
        assert 0 <= index < self.size
        return say(self.name, str(index))


def places(mixture: Mixture) -> list[tuple[str, int]]:
    found = []
    for index in range(len(mixture)):
        dataset, row = mixture.place(index)
        assert mixture.conversation(index) == dataset.conversation(row)
        found.append((dataset.name, row))
    return found


def counts_of(mixture: Mixture) -> dict[str, int]:
    return {one.dataset.name: one.count for one in mixture.ingredients}


def test_every_row_comes_as_often_as_its_epochs_say() -> None:
    mixture = Mixture(
        [
            Ingredient(Numbers("all", 30)),
            Ingredient(Numbers("twice", 7), epochs=2),
            Ingredient(Numbers("more", 10), epochs=2.5),
            Ingredient(Numbers("fraction", 40), epochs=0.2),
            Ingredient(Numbers("some", 50), rows=9),
            Ingredient(Numbers("some, twice", 50), rows=4, epochs=2),
            Ingredient(Numbers("short", 3), rows=100),
        ],
        seed=0,
    )
    counts = {"all": 30, "twice": 14, "more": 25, "fraction": 8, "some": 9, "some, twice": 8}
    assert counts_of(mixture) == counts | {"short": 3}
    assert len(mixture) == 97
    times = Counter(places(mixture))
    assert Counter(name for name, _ in times.elements()) == counts_of(mixture)
    found = {name: sorted(n for (s, _), n in times.items() if s == name) for name, _ in times}
    assert found == {
        "all": [1] * 30,
        "twice": [2] * 7,
        "more": [2] * 5 + [3] * 5,
        "fraction": [1] * 8,
        "some": [1] * 9,
        "some, twice": [2] * 4,
        "short": [1] * 3,
    }


def test_the_same_seed_gives_the_same_mixture_and_another_one_another() -> None:
    def make(seed: int) -> list[tuple[str, int]]:
        return places(Mixture([Ingredient(Numbers("a", 40), epochs=3)], seed))

    assert make(1) == make(1) != make(2)
    epochs = [make(1)[start : start + 40] for start in (0, 40, 80)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3, "two epochs are in the same order"


def test_seed_42_has_the_rows_in_nanochats_order() -> None:
    """It shuffles every data set with NumPy's default generator of seed 42."""
    ingredient = Ingredient(Numbers("a", 1000), rows=10)
    theirs = np.random.default_rng(42).permutation(1000)[:10]
    assert ingredient.order(42).tolist() == theirs.tolist()


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
def test_every_stretch_from_the_start_has_the_shares(counts: list[int]) -> None:
    which = interleave(counts)
    total = sum(counts)
    assert np.bincount(which, minlength=len(counts)).tolist() == counts
    for number, count in enumerate(counts):
        so_far = np.cumsum(which == number)
        share = count / total
        away = np.abs(so_far - np.arange(1, total + 1) * share).max()
        assert away < (1 + share * len(counts)) / 2 + 1e-9


def test_a_small_part_is_spread_over_the_whole() -> None:
    where = np.flatnonzero(interleave([1000, 4]) == 1)
    assert np.diff(where, prepend=-125, append=1004 + 125).tolist() == pytest.approx(
        [251] * 5, abs=2
    )


def test_reading_begins_anywhere() -> None:
    mixture = Mixture([Ingredient(Numbers("a", 9)), Ingredient(Numbers("b", 4))], 0)
    whole = list(mixture)
    assert len(whole) == 13
    assert list(islice(mixture, 7, None)) == whole[7:]
    assert list(islice(mixture, 2, 5)) == whole[2:5]
    assert list(islice(mixture, 13, None)) == []
    with pytest.raises(IndexError):
        mixture.conversation(13)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 1.0), (None, 0.0), (None, float("nan"))])
def test_nothing_of_a_data_set_is_refused(rows: int | None, epochs: float) -> None:
    with pytest.raises(ValueError, match="both must be greater than 0"):
        Ingredient(Numbers("a", 9), rows, epochs)
    with pytest.raises(ValueError, match="at least one conversation"):
        Mixture([Ingredient(Numbers("a", 0))], 0)


def test_files_and_generated_problems_mix(tmp_path: Path) -> None:
    task = make_tasks(["identity"], 0)["identity"]
    mixture = Mixture(
        [
            Ingredient(open_source("smoltalk", [parquet(tmp_path / "s.parquet", CHATS)]), rows=6),
            Ingredient(open_source("gsm8k", [jsonl(tmp_path / "g.jsonl", GSM8K_ROWS)]), epochs=3),
            Ingredient(drawn(task, 5, first=30), epochs=2),
        ],
        0,
    )
    assert counts_of(mixture) == {"smoltalk": 6, "gsm8k": 6, "identity": 10}
    said = Counter(str(conversation["messages"]) for conversation in mixture)
    assert said[str(task.problem("train", 30).conversation["messages"])] >= 2
    assert sum(said.values()) == 22
