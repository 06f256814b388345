"""Which datasets of conversations a stage reads: the names in its `epochs` (layer 2)."""

from __future__ import annotations

from pathlib import Path

from jaxchat.config import ConfigError
from jaxchat.data import registry

OWN_SUFFIX = ".jsonl"


def chat_source(name: str) -> registry.Source | None:
    """The dataset that `epochs` names; None for a file of the user's own.

    Raises ConfigError for what is neither.
    """
    if name.endswith(OWN_SUFFIX):
        return None
    chats = {source.name: source for source in registry.SOURCES.values() if source.kind == "chat"}
    if name not in chats:
        raise ConfigError(
            f"there is no dataset of conversations {name!r} (mid.epochs or sft.epochs names it); "
            f"there are {', '.join(chats)}, and files of your own whose names end in {OWN_SUFFIX}."
        )
    return chats[name]


def own_file(name: str) -> Path:
    """The file of the user's own that `epochs` names. Raises ConfigError when it isn't there."""
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; mid.epochs or sft.epochs names it.")
    return path


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
