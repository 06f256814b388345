"""Conversations as rows: datasets and generated problems, mixed, rendered and packed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.config.schema import RunConfig, TrainConfig
from jaxchat.data.inputs import Inputs
from jaxchat.data.loader import HeldOutRows, ShardedRows
from jaxchat.data.packing import (
    ChatStatistics,
    Ids,
    Offsets,
    draw_groups,
    group_weights,
    join,
    learned_in_row,
    pack_conversations,
)
from jaxchat.data.prepare import FIRST_INDEX, mixture, run_tasks
from jaxchat.data.registry import chat_source, chat_stages, in_order, train_split
from jaxchat.data.shard_folder import write_rows
from jaxchat.errors import ConfigError
from jaxchat.paths import sha256_text
from jaxchat.progress import Progress
from jaxchat.tasks import Problem, Task, open_source
from jaxchat.tasks.base import Split
from jaxchat.tasks.conversations import Custom
from jaxchat.tasks.dataset import Dataset, Selection, drawn
from jaxchat.tasks.mixture import Ingredient, Mixture
from jaxchat.tokenizer import Tokenizer
from jaxchat.tokenizer.chat_format import Conversation, Mask, render_batch

HELD_OUT_PROBLEMS = 400  # conversations where all are generated
HELD_OUT = 5_000  # conversations where datasets are read
OWN_HELD_OUT = 0.02  # of a file of the user's own
# Problems in each training conversation, in turn: a chat continues after its first answer.
TURNS = (1, 2, 1, 3)
SPLITS: tuple[Split, ...] = ("train", "test")
FOLDERS = {"train": "train", "test": "heldout"}
RENDERED = 1_024  # conversations at a time


def build_chat_rows(
    config: RunConfig,
    inputs: Inputs,
    tokenizer: Tokenizer,
    text: Mapping[Split, ShardedRows | HeldOutRows],
    folder: Path,
) -> dict[str, Any]:
    """Rows of conversations for midtraining and SFT, to train on and held out, in `folder`.

    `text` is what a stage's `text_share` is taken from. The result has a hash of each stage's rows
    in `parts`.
    """
    results: dict[str, Any] = {}
    parts: dict[str, str] = {}
    for stage, train in chat_stages(config).items():
        tasks = run_tasks(train.mixture, config.seed, inputs, tokenizer)
        digests: list[str] = []
        for split in SPLITS:
            target = folder / f"{stage}_{FOLDERS[split]}"
            if train.epochs:
                mixed = _mixed(stage, train, inputs, tasks, split, config.seed)
                conversations, count = iter(mixed), len(mixed)
            else:
                conversations, count = _generated(stage, train, tasks, split)
            # evaluation on held-out rows uses no weights
            group = train.loss_group if split == "train" else None
            tokens, mask, counts = _packed(
                conversations, count, tokenizer, config, target.name, group
            )
            places = np.arange(round(train.text_share * len(tokens)))
            some = text[split].take(places, config.seed)
            tokens = np.concatenate([tokens, some.astype(tokens.dtype)])
            mask = np.concatenate([mask, np.ones(some.shape, mask.dtype)])
            manifest = write_rows(target, tokens, mask, tokenizer.hash)
            digests += manifest.checksums.values()
            results[target.name] = {
                "conversations": counts.conversations,
                "cut": counts.cut,
                "padding": round(counts.share_padding, 4),
                "rows": manifest.rows,
                "tokens": manifest.rows * manifest.row_tokens,
                "trained_tokens": manifest.trained_tokens,
            }
        parts[stage] = sha256_text(*digests)
    return {"artifact": sha256_text(*parts.values()), "parts": parts, **results}


def _packed(
    conversations: Iterator[Conversation],
    count: int,
    tokenizer: Tokenizer,
    config: RunConfig,
    title: str,
    group: int | None,
) -> tuple[np.ndarray, np.ndarray, ChatStatistics]:
    """Tokens and mask [N, T+1] of `count` conversations.

    The mask has the weights of their own, by groups of `group` conversations (0: by tokens); with
    None it is 1 wherever a token is learned.
    """
    row = config.model.sequence_len + 1
    ids, mask, offsets = _rendered(conversations, count, tokenizer, title)
    _report_silent(config, mask, offsets, title)
    if group is None:
        mask = (mask > 0).astype(np.uint8)
    elif group:
        groups = draw_groups(len(offsets) - 1, group, config.seed)
        weights = group_weights(mask, offsets, row, groups)
        mask = mask * np.repeat(weights, np.diff(offsets))
    return pack_conversations(ids, mask, offsets, row, tokenizer.bos)


def _report_silent(config: RunConfig, mask: Mask, offsets: Offsets, title: str) -> None:
    """Reports how many conversations teach nothing in the rows of a run, and what to set.

    Raises ConfigError where all do: nothing would be learned, or measured.
    """
    row, stage = config.model.sequence_len + 1, title.partition("_")[0]
    learned, kept = (learned_in_row(mask, offsets, length) for length in (len(mask), row))
    silent, beyond = kept == 0, (learned > 0) & (kept == 0)
    if not silent.any():
        return
    parts = [f"{title}: {silent.sum():,} of {len(silent):,} conversations teach nothing"]
    if beyond.any():
        begins = offsets[:-1][beyond]
        first = [int(np.argmax(mask[start:] > 0)) for start in begins]
        parts.append(
            f"of {len(first):,} the reply begins beyond a row of {row:,} tokens: with "
            f"model.sequence_len={max(first)} these would teach something, too"
        )
    if without := int((learned == 0).sum()):
        parts.append(f"{without:,} have no reply that is to be learned")
    sentence = "; ".join(parts)
    if silent.all() and not getattr(config, stage).text_share:
        raise ConfigError(
            f"{sentence}. Set that, or name other conversations in {stage}.epochs (the last of a "
            f"file are held out) or {stage}.mixture."
        )
    print(sentence, flush=True)


def _rendered(
    conversations: Iterator[Conversation], count: int, tokenizer: Tokenizer, title: str
) -> tuple[Ids, Mask, Offsets]:
    """Ids, mask and offsets of `count` conversations."""
    masks: list[Mask] = []
    with Progress(f"rendering {title}", count, "conversation") as progress:

        def rendered() -> Iterator[tuple[Ids, Offsets]]:
            while batch := list(itertools.islice(conversations, RENDERED)):
                ids, mask, offsets = render_batch(batch, tokenizer)
                masks.append(mask)
                yield ids, offsets
                progress.advance(len(batch))

        ids, offsets = join(rendered())
    if not masks:
        stage = title.partition("_")[0]
        raise ConfigError(
            f"{title} has no conversation; name datasets in {stage}.epochs, or tasks in "
            f"{stage}.mixture and how many in {stage}.conversations."
        )
    return ids, np.concatenate(masks), offsets


def _generated(
    stage: str, train: TrainConfig, tasks: Mapping[str, Task], split: Split
) -> tuple[Iterator[Conversation], int]:
    """Generated problems, to train on one to three in a conversation; and about how many."""
    shares = dict(train.mixture)
    if not shares:
        return iter(()), 0
    if split == "train":
        problems = mixture(shares, tasks, "train", train.conversations, FIRST_INDEX[stage])
        groups, count = _grouped(problems, TURNS), train.conversations * len(TURNS) // sum(TURNS)
    else:
        problems = mixture(shares, tasks, "test", HELD_OUT_PROBLEMS)
        groups, count = _grouped(problems, (1,)), HELD_OUT_PROBLEMS
    joined = (
        Conversation(messages=[m for p in group for m in p.conversation["messages"]])
        for group in groups
    )
    return joined, count


def _grouped(problems: Iterable[Problem], sizes: Sequence[int]) -> Iterator[list[Problem]]:
    """Problems in groups of the sizes in turn; the last may be smaller."""
    source = iter(problems)
    for size in itertools.cycle(sizes):
        group = list(itertools.islice(source, size))
        if not group:
            return
        yield group


def _mixed(
    stage: str,
    train: TrainConfig,
    inputs: Inputs,
    tasks: Mapping[str, Task],
    split: Split,
    seed: int,
) -> Mixture:
    """Datasets and generated problems, every one shuffled, interleaved by their shares.

    Held out are about HELD_OUT conversations of the test splits, in the shares of training.
    """
    training = {
        name: _ingredient(stage, name, _dataset(name, inputs, "train"), train.epochs[name], split)
        for name in in_order(train.epochs)  # whatever order they are written in
    }
    generated = set[str]()
    total = sum(train.mixture.values()) if train.conversations else 0
    for name, share in sorted(train.mixture.items()) if total else ():
        count = round(train.conversations * share / total)
        if not count and split == "train":
            _report_one(f"{stage}.mixture.{name}", share, "problem")
        training[name] = Ingredient(drawn(tasks[name], max(count, 1), "train", FIRST_INDEX[stage]))
        generated.add(name)
    if split == "train":
        return Mixture(list(training.values()), seed)
    scale = min(1.0, HELD_OUT / sum(one.count for one in training.values()))
    held_out = []
    for name, one in training.items():
        rows = max(1, round(scale * one.count))
        dataset = (
            drawn(tasks[name], rows, "test")
            if name in generated
            else _dataset(name, inputs, "test")
        )
        held_out.append(Ingredient(dataset, rows=rows))
    return Mixture(held_out, seed)


def _ingredient(stage: str, name: str, dataset: Dataset, epochs: float, split: Split) -> Ingredient:
    """A number of epochs of a dataset, but one conversation at least."""
    whole = Ingredient(dataset, epochs=epochs)
    if whole.count:
        return whole
    if split == "train":
        _report_one(f'{stage}.epochs."{name}"', epochs, f"conversation of {len(dataset):,}")
    return Ingredient(dataset, rows=1)


def _report_one(setting: str, value: float, what: str) -> None:
    print(f"{setting}={value:g} is less than half a {what}; one is taken", flush=True)


def _dataset(name: str, inputs: Inputs, split: Split) -> Dataset:
    """A split of a dataset; the last conversations of the user's own files are held out."""
    source = chat_source(name)
    if source is None:
        own = Custom(inputs.paths(name, "train"))
        held_out = max(1, round(OWN_HELD_OUT * len(own)))
        if len(own) == 1:
            return own
        first = len(own) - held_out
        numbers = range(first) if split == "train" else range(first, len(own))
        return Selection(own.name, numbers, own.conversation)
    return open_source(
        name, inputs.paths(name, train_split(source) if split == "train" else "test")
    )
