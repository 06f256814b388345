"""Which datasets of conversations a stage reads: the names in its `epochs` (layer 2).

Files of the user's own have a role there, by which hashes know them: where they are, and what they
are called, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from jaxchat.config.schema import RunConfig, TrainConfig
from jaxchat.data import registry
from jaxchat.data.files.folders import TALKS, kind_of
from jaxchat.errors import ConfigError


def is_own(name: str) -> bool:
    """Whether a name in `epochs` is a file of the user's own, by its ending."""
    return bool(kind_of(name, TALKS))


def in_order(names: Iterable[str]) -> list[str]:
    """Names in `epochs` in the order in which they are mixed: datasets, then one's own files."""
    return sorted(names, key=lambda name: (is_own(name), name))


def own_talks(config: RunConfig) -> dict[str, str]:
    """Role -> name of the user's own files of conversations that a run trains on."""
    stages = {"mid": config.mid, "sft": config.sft}
    return {
        role: name
        for stage, train in stages.items()
        if config.imported.trains(stage)
        for name, role in _roles(stage, train).items()
    }


def _roles(stage: str, train: TrainConfig) -> dict[str, str]:
    own = [name for name in in_order(train.epochs) if is_own(name)]
    return {name: f"{stage}, own file {number}.jsonl" for number, name in enumerate(own, 1)}


def without_places(config: RunConfig) -> RunConfig:
    """A configuration that does not say where the user's own files are: only that there are some.

    What is in them is part of what is made of them, so hashes are of this configuration.
    """

    def nameless(stage: str) -> TrainConfig:
        train: TrainConfig = getattr(config, stage)
        roles = _roles(stage, train)
        return replace(train, epochs={roles.get(n, n): e for n, e in train.epochs.items()})

    def there(name: str) -> str:
        return "own" if name else ""

    data = replace(
        config.data, folder=there(config.data.folder), persona=there(config.data.persona)
    )
    evaluated = replace(config.eval, bundle=there(config.eval.bundle))
    return replace(config, data=data, eval=evaluated, mid=nameless("mid"), sft=nameless("sft"))


EPOCHS = "mid.epochs or sft.epochs"


def chat_source(name: str, where: str = EPOCHS) -> registry.Source | None:
    """The dataset that `epochs`, which is `where`, names; None for a file of the user's own.

    Raises ConfigError for what is neither.
    """
    if is_own(name):
        return None
    chats = {source.name: source for source in registry.SOURCES.values() if source.kind == "chat"}
    if name not in chats:
        raise ConfigError(
            f"there is no dataset of conversations {name!r} ({where} names it); "
            f"there are {', '.join(chats)}, and files of your own whose names end in "
            f"{', '.join(TALKS)}."
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
        f"{EPOCHS}."
    )


def train_rows(source: registry.Source) -> int:
    """How many conversations of a dataset there are to train on."""
    return source.rows[train_split(source)]
