"""Which datasets of conversations a stage reads: the names in its `epochs` (layer 2)."""

from __future__ import annotations

from jaxchat.config import ConfigError
from jaxchat.data import registry
from jaxchat.reading.folders import kind_of
from jaxchat.tasks.table import SUFFIXES


def is_own(name: str) -> bool:
    """Whether a name in `epochs` is a file of the user's own, by its ending."""
    return bool(kind_of(name, SUFFIXES))


def chat_source(name: str) -> registry.Source | None:
    """The dataset that `epochs` names; None for a file of the user's own.

    Raises ConfigError for what is neither.
    """
    if is_own(name):
        return None
    chats = {source.name: source for source in registry.SOURCES.values() if source.kind == "chat"}
    if name not in chats:
        raise ConfigError(
            f"there is no dataset of conversations {name!r} (mid.epochs or sft.epochs names it); "
            f"there are {', '.join(chats)}, and files of your own whose names end in "
            f"{', '.join(SUFFIXES)}."
        )
    return chats[name]


def train_split(source: registry.Source) -> str:
    """The split of a dataset that is trained on: MMLU has none of its own."""
    for name in ("train", "auxiliary_train"):
        if name in source.splits:
            return name
    raise ConfigError(
        f"{source.name} has nothing to train on, only {', '.join(source.splits)}; take it out of "
        "mid.epochs and sft.epochs."
    )


def train_rows(source: registry.Source) -> int:
    """How many conversations of a dataset there are to train on."""
    return source.rows[train_split(source)]
