"""What a run downloads and reads, estimated from its configuration and the registry: no network."""

from __future__ import annotations

from dataclasses import dataclass

from jaxchat.config.schema import NOWHERE, RunConfig, TrainConfig
from jaxchat.data import registry
from jaxchat.data.registry import chat_source, train_rows

MACHINE_CHARACTERS_PER_TOKEN = 3.0  # of the machine's documentation, with its small vocabulary
CHARACTERS_PER_TOKEN = 4.8  # of English web pages with a vocabulary of 65,536
TOKENS_PER_PROBLEM = 40  # of the generated ones, with special tokens

# About; GSM8K's and ARC's counted with a vocabulary of 32,768, the others from their sizes.
TOKENS_PER_ROW = {"smoltalk": 850, "mmlu": 350, "gsm8k": 190, "arc_easy": 60, "arc_challenge": 65}
OWN_TOKENS_PER_ROW = 500  # of conversations of one's own


@dataclass(frozen=True)
class TextPlan:
    """The text of the base model."""

    source: str  # for people
    download: float = 0  # bytes
    characters: float = 0  # of the shards to train on; 0 where only the files have that
    tokens: float = 0  # likewise


# What comes beside the text, such as CORE's tasks: its name, bytes (0 for the user's own), its use
Download = tuple[str, float, str]


def plan_text(config: RunConfig) -> TextPlan:
    """The text. Raises ConfigError for more shards than there are."""
    data = config.data
    if data.source == "machine":
        tokens = data.max_chars / MACHINE_CHARACTERS_PER_TOKEN
        return TextPlan("the documentation that this machine carries", 0, data.max_chars, tokens)
    if data.source == "folder":
        return TextPlan(f"the files of {data.folder}")
    source, held_out = registry.find(data.source), data.held_out_shard
    files = registry.choose(source, source.files, data.shards or None, held_out=held_out)
    which = "the last one" if held_out == registry.LAST else f"number {held_out:,}"
    characters = float((len(files) - 1) * source.characters_per_file)
    return TextPlan(
        f"{source.name} ({source.repo}): {len(files) - 1:,} of {len(source.files) - 1:,} shards, "
        f"and {which} for validation",
        source.size * len(files) / len(source.files),
        characters,
        characters / CHARACTERS_PER_TOKEN,
    )


def plan_downloads(config: RunConfig) -> list[Download]:
    """Everything but the text. Raises ConfigError for an unknown dataset of conversations."""
    stages = {name: getattr(config, name).epochs for name in ("mid", "sft")}
    found: list[Download] = []
    for name in dict.fromkeys(name for epochs in stages.values() for name in epochs):
        source = chat_source(name)
        read = ", ".join(
            f"{round(epochs[name] * train_rows(source)):,} in {stage}"
            for stage, epochs in stages.items()
            if source is not None and name in epochs
        )
        found.append((name, source.size if source else 0, read))
    wanted = config.eval
    if config.data.is_dataset and not wanted.bundle and wanted.bundle_url != NOWHERE:
        found.append(("eval_bundle", registry.BUNDLE_SIZE, "CORE's tasks, for base"))
    if config.data.is_dataset and wanted.vocabularies_url != NOWHERE:
        use = "GPT-2's and GPT-4's, beside the tokenizer"
        found.append(("vocabularies", registry.VOCABULARIES_SIZE, use))
    return found


def chat_tokens(train: TrainConfig) -> int:
    """Tokens of a pass over a stage's conversations and its share of text, about."""
    read = 0.0
    for name, epochs in train.epochs.items():
        if (source := chat_source(name)) is not None:
            read += epochs * train_rows(source) * TOKENS_PER_ROW.get(name, OWN_TOKENS_PER_ROW)
    return int((read + train.conversations * TOKENS_PER_PROBLEM) * (1 + train.text_share))
