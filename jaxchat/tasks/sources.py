"""Data sets by name: what is read from files, what is generated, and mixtures of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jaxchat.config import ConfigError
from jaxchat.tasks.arc import ARCChallenge, ARCEasy
from jaxchat.tasks.base import Split, Task
from jaxchat.tasks.custom import Custom
from jaxchat.tasks.dataset import Dataset, Drawn
from jaxchat.tasks.gsm8k import GSM8K
from jaxchat.tasks.humaneval import HumanEval
from jaxchat.tasks.mixture import Ingredient, Mixture
from jaxchat.tasks.mmlu import MMLU
from jaxchat.tasks.recipes import Amount
from jaxchat.tasks.smoltalk import SmolTalk

FILE_SOURCES: Mapping[str, Callable[[Iterable[Path]], Dataset]] = {
    "smoltalk": SmolTalk,
    "mmlu": MMLU,
    "gsm8k": GSM8K,
    "arc_easy": ARCEasy,
    "arc_challenge": ARCChallenge,
    "humaneval": HumanEval,
    "custom": Custom,
}


def open_source(name: str, paths: Iterable[Path]) -> Dataset:
    """The data set of a name, out of the files of one split.

    Raises ConfigError for an unknown name, and what opening raises.
    """
    if name not in FILE_SOURCES:
        raise ConfigError(
            f"there is no source {name!r}; the sources are {', '.join(FILE_SOURCES)}."
        )
    return FILE_SOURCES[name](paths)


def make_mixture(
    amounts: Mapping[str, Amount],
    files: Mapping[str, Iterable[Path]],
    tasks: Mapping[str, Task],
    seed: int,
    *,
    split: Split = "train",
    first: int = 0,
) -> Mixture:
    """The mixture of a recipe (see `recipes`), in the order of its names.

    `files` has the files of the right split of each source that is read, `tasks` the tasks that are
    generated, of which problems from index `first` on are drawn. Raises ConfigError for a name that
    is in neither and for a generated task without `rows`, and what opening raises.
    """
    ingredients = []
    for name, amount in amounts.items():
        if name in files:
            dataset = open_source(name, files[name])
            ingredients.append(Ingredient(dataset, amount.rows, amount.epochs))
        elif name not in tasks:
            raise ConfigError(
                f"the mixture has {name!r}, for which there is neither a file nor a task; there "
                f"are {', '.join([*files, *tasks])}."
            )
        elif amount.rows is None:
            raise ConfigError(f"{name} is generated and has no end; the mixture must say rows.")
        else:
            drawn = Drawn(tasks[name], amount.rows, split, first)
            ingredients.append(Ingredient(drawn, epochs=amount.epochs))
    return Mixture(ingredients, seed)
