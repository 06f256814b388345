"""Mixtures: every row as often as asked, every stretch with the right shares, fixed by a seed."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hub_files import CHATS, GSM8K_ROWS, jsonl, parquet
from hypothesis import given
from hypothesis import strategies as st

from jaxchat.config import ConfigError
from jaxchat.tasks import TASKS, make_tasks
from jaxchat.tasks.base import say
from jaxchat.tasks.mixture import Ingredient, Mixture, interleave
from jaxchat.tasks.recipes import MID, MID_VALIDATION, MODERN_SFT, SFT, SFT_VALIDATION, Amount
from jaxchat.tasks.sources import FILE_SOURCES, make_mixture
from jaxchat.tokenizer.chat import Conversation


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
    assert mixture.counts == counts | {"short": 3}
    assert len(mixture) == 97
    times = Counter(places(mixture))
    assert Counter(name for name, _ in times.elements()) == mixture.counts
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
        return places(Mixture([Ingredient(Numbers("a", 40), epochs=2)], seed))

    assert make(1) == make(1) != make(2)
    first, second = make(1)[:40], make(1)[40:]
    assert first != second, "the second epoch is in the order of the first"
    assert sorted(first) == sorted(second)


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
    whole = list(mixture.read())
    assert len(whole) == 13
    assert list(mixture.read(7)) == whole[7:]
    assert list(mixture.read(2, 5)) == whole[2:5]
    assert list(mixture.read(13)) == []
    with pytest.raises(IndexError):
        mixture.conversation(13)


@pytest.mark.parametrize(("rows", "epochs"), [(0, 1.0), (None, 0.0), (None, float("nan"))])
def test_nothing_of_a_data_set_is_refused(rows: int | None, epochs: float) -> None:
    with pytest.raises(ValueError, match="both must be greater than 0"):
        Ingredient(Numbers("a", 9), rows, epochs)
    with pytest.raises(ValueError, match="at least one conversation"):
        Mixture([Ingredient(Numbers("a", 0))], 0)


def test_a_recipe_mixes_files_and_generated_problems(tmp_path: Path) -> None:
    files = {
        "smoltalk": [parquet(tmp_path / "s.parquet", CHATS)],
        "gsm8k": [jsonl(tmp_path / "g.jsonl", GSM8K_ROWS)],
    }
    tasks = make_tasks(["identity"], 0)
    amounts = {
        "smoltalk": Amount(rows=6),
        "gsm8k": Amount(epochs=3),
        "identity": Amount(rows=5, epochs=2),
    }
    mixture = make_mixture(amounts, files, tasks, 0, first=30)
    assert mixture.counts == {"smoltalk": 6, "gsm8k": 6, "identity": 10}
    said = Counter(str(conversation["messages"]) for conversation in mixture.read())
    problem = tasks["identity"].problem("train", 30)
    assert said[str(problem.conversation["messages"])] >= 2
    assert sum(said.values()) == 22


def test_names_and_numbers_that_a_mixture_cannot_have(tmp_path: Path) -> None:
    tasks = make_tasks(["identity"], 0)
    with pytest.raises(ConfigError, match="neither a file nor a task; there are identity"):
        make_mixture({"mmlu": Amount()}, {}, tasks, 0)
    with pytest.raises(ConfigError, match="identity is generated and has no end"):
        make_mixture({"identity": Amount()}, {}, tasks, 0)


def test_the_recipes_name_what_there_is_and_have_the_sizes_they_say() -> None:
    sizes = {"smoltalk": 460_341, "mmlu": 99_842, "gsm8k": 7_473}
    sizes |= {"arc_easy": 2_251, "arc_challenge": 1_119}

    def count(amounts: dict[str, Amount]) -> int:
        whole = {name: amount.rows or sizes[name] for name, amount in amounts.items()}
        return round(sum(whole[name] * amounts[name].epochs for name in amounts))

    for recipe in (MID, SFT, MODERN_SFT, MID_VALIDATION, SFT_VALIDATION):
        assert set(recipe) <= set(FILE_SOURCES) | set(TASKS)
        assert all(amount.rows or name in FILE_SOURCES for name, amount in recipe.items())
    assert count({name: MID[name] for name in ("smoltalk", "mmlu", "gsm8k")}) == 567_656
    assert count(dict(MID)) == 567_656 + 2_000 + 280_000
    assert count(dict(SFT)) == 22_443
