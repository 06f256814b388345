"""Data sets by name, out of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jaxchat.errors import ConfigError
from jaxchat.tasks.arc import ARCChallenge, ARCEasy
from jaxchat.tasks.custom import Custom
from jaxchat.tasks.dataset import Dataset
from jaxchat.tasks.gsm8k import GSM8K
from jaxchat.tasks.humaneval import HumanEval
from jaxchat.tasks.mmlu import MMLU
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
