"""What a run reads, reckoned from its configuration and the registry: no network (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxchat.config.schema import NOWHERE, RunConfig, TrainConfig
from jaxchat.data import registry
from jaxchat.data.registry import chat_source, train_rows

CHARACTERS_PER_TOKEN = {"machine": 3.0}  # of its small vocabulary
_CHARACTERS_PER_TOKEN = 4.8  # of English web pages with a vocabulary of 65,536
TOKENS_PER_PROBLEM = 40  # of the generated ones, with special tokens

# About; GSM8K's and ARC's counted with a vocabulary of 32,768, the others from their sizes.
TOKENS_PER_ROW = {"smoltalk": 850, "mmlu": 350, "gsm8k": 190, "arc_easy": 60, "arc_challenge": 65}
_TOKENS_PER_ROW = 500  # of conversations of one's own


@dataclass(frozen=True)
class TextPlan:
    """The text of the base model.

    Attributes:
        what: the source, for people.
        download: bytes that come over the network.
        characters, tokens: of the shards to train on; 0 where only the files could tell.
    """

    what: str
    download: float
    characters: float
    tokens: float


@dataclass(frozen=True)
class ChatPlan:
    """One dataset of conversations: how many of them each stage reads, and what comes for that."""

    name: str
    download: float
    conversations: Mapping[str, int]  # by stage; empty for files that nobody has counted


def plan_text(config: RunConfig) -> TextPlan:
    """The text. Raises ConfigError for more shards than there are."""
    data = config.data
    if data.source == "machine":
        tokens = data.max_chars / CHARACTERS_PER_TOKEN["machine"]
        return TextPlan("the documentation that this machine carries", 0, data.max_chars, tokens)
    if data.source == "folder":
        return TextPlan(f"the files of {data.folder}", 0, 0, 0)
    source = registry.find(data.source)
    held_out = data.held_out_shard
    files = registry.choose(source, source.files, data.shards or None, held_out=held_out)
    which = "the last one" if held_out == registry.LAST else f"number {held_out:,}"
    characters = float((len(files) - 1) * source.characters_per_file)
    return TextPlan(
        f"{source.name} ({source.repo}): {len(files) - 1:,} of {len(source.files) - 1:,} shards, "
        f"and {which} for validation",
        source.size * len(files) / len(source.files),
        characters,
        characters / _CHARACTERS_PER_TOKEN,
    )


def plan_chat(config: RunConfig) -> tuple[ChatPlan, ...]:
    """The datasets of conversations. Raises ConfigError for one that nobody knows."""
    stages = {name: getattr(config, name).epochs for name in ("mid", "sft")}
    plans = []
    for name in dict.fromkeys(name for epochs in stages.values() for name in epochs):
        source = chat_source(name)
        read = {
            stage: round(epochs[name] * train_rows(source))
            for stage, epochs in stages.items()
            if source is not None and name in epochs
        }
        plans.append(ChatPlan(name, source.size if source else 0, read))
    return tuple(plans)


def plan_extras(config: RunConfig) -> dict[str, tuple[float, str]]:
    """What comes beside text and conversations: name -> bytes, and what it is for."""
    found: dict[str, tuple[float, str]] = {}
    if not config.data.is_dataset:
        return found
    wanted = config.eval
    if not wanted.bundle and wanted.bundle_url != NOWHERE:
        found["eval_bundle"] = registry.BUNDLE_SIZE, "CORE's tasks, for base"
    if wanted.vocabularies_url != NOWHERE:
        told = "GPT-2's and GPT-4's, beside the tokenizer"
        found["vocabularies"] = registry.VOCABULARIES_SIZE, told
    return found


def chat_tokens(train: TrainConfig) -> int:
    """Tokens of a pass over a stage's conversations, about."""
    read = 0.0
    for name, epochs in train.epochs.items():
        source = chat_source(name)
        if source is not None:
            read += epochs * train_rows(source) * TOKENS_PER_ROW.get(name, _TOKENS_PER_ROW)
    return int(read) + train.conversations * TOKENS_PER_PROBLEM
