"""From sources to what training reads: corpus, tokenizer, rows (I/O; layer 2)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxchat.config import ConfigError, DataConfig, RunConfig, TrainConfig
from jaxchat.data import corpus
from jaxchat.data.packing import (
    Ids,
    Offsets,
    join,
    join_conversations,
    pack_conversations,
    pack_text,
)
from jaxchat.data.rows import RowsManifest, RowSource, write_rows
from jaxchat.home import ArtifactError, read_json, sha256_file, sha256_text, write_json
from jaxchat.progress import Progress
from jaxchat.tasks import EVERYDAY_WORDS, Problem, Task, make_tasks, select_words
from jaxchat.tasks.base import Split
from jaxchat.tokenizer import Tokenizer, render
from jaxchat.tokenizer import training as bpe

HELD_OUT_CONVERSATIONS = 400
# Each stage draws its training problems from a range of its own, so none sees another's draws.
FIRST_INDEX = {"tokenizer": 0, "mid": 0, "sft": 100_000_000, "rl": 200_000_000}
ENCODE_BATCH = 256
# Problems in each training conversation, in turn: a chat goes on after its first answer.
TURNS = (1, 2, 1, 3)


def build_corpus(config: DataConfig, folder: Path) -> dict[str, Any]:
    """The text stage: writes the corpus and its words; returns what the report tells."""
    if config.source != "machine":
        raise ConfigError(
            f"data.source is {config.source!r}, which this version cannot fetch yet; --plan works, "
            'and data.source = "machine" trains on the documentation this machine carries.'
        )
    with Progress("gathering text", config.max_chars, "char") as progress:
        manifest = corpus.build(folder, max_chars=config.max_chars, progress=progress.update)
    common = select_words(corpus.read(folder, "train"), config.words)
    words = list(dict.fromkeys([*common, *EVERYDAY_WORDS]))
    write_json(folder / "words.json", words)
    return {
        "artifact": sha256_text(
            *(split.sha256 for split in manifest.splits.values()),
            sha256_file(folder / "words.json"),
        ),
        "characters": manifest.chars,
        "words": len(words),
        "sources": {name: asdict(counts) for name, counts in manifest.sources.items()},
        "splits": {name: asdict(counts) for name, counts in manifest.splits.items()},
    }


def read_words(folder: Path) -> list[str]:
    """The corpus's words, commonest first."""
    words: list[str] = read_json(folder / "words.json")
    return words


def always_train(words: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Words that are one token: their letters cannot be worked out from pieces, only be told."""
    return [word for word in words if len(tokenizer.encode(f" {word}")) == 1]


def run_tasks(
    names: Iterable[str], seed: int, corpus_folder: Path, tokenizer: Tokenizer
) -> dict[str, Task]:
    """The named tasks of a run, over the words of its corpus. Raises ConfigError for no task."""
    words = read_words(corpus_folder)
    try:
        return make_tasks(names, seed, words, always_train=always_train(words, tokenizer))
    except ValueError as error:
        raise ConfigError(f"{error} (a mixture, eval.tasks or rl.task names it).") from error


def mixture(
    shares: dict[str, float], tasks: dict[str, Task], split: Split, count: int, first: int = 0
) -> Iterator[Problem]:
    """`count` problems, interleaved so that every prefix has the shares as nearly as can be.

    A task's own problems come in order from index `first`.
    """
    total = sum(shares.values())
    taken = dict.fromkeys(sorted(shares), 0)  # whatever order the configuration has them in
    for number in range(1, count + 1):
        name = max(taken, key=lambda task: number * shares[task] / total - taken[task])
        yield tasks[name].problem(split, first + taken[name])
        taken[name] += 1


def train_tokenizer(config: RunConfig, corpus_folder: Path, folder: Path) -> dict[str, Any]:
    """The tokenizer stage: trains on the corpus and on generated conversations."""
    shares = dict(config.mid.mixture)
    tasks = make_tasks(shares, config.seed, read_words(corpus_folder))
    conversations = mixture(shares, tasks, "train", min(config.mid.conversations, 5_000))
    spoken = ("\n".join(_said(problem)) for problem in conversations)
    text = _limit(corpus.read(corpus_folder, "train"), config.tokenizer.max_chars)
    with Progress("training tokenizer", config.tokenizer.vocab_size, "token") as progress:
        tokenizer = bpe.train_tokenizer(
            itertools.chain(text, spoken), config.tokenizer.vocab_size, progress=progress.update
        )
    tokenizer.save(folder)
    sample = list(corpus.read(corpus_folder, "heldout"))
    ids, _ = tokenizer.encode_batch(sample)
    return {
        "artifact": tokenizer.hash,
        "vocabulary": tokenizer.vocab_size,
        "bytes_per_token": sum(len(t.encode()) for t in sample) / len(ids),
    }


def _said(problem: Problem) -> list[str]:
    return [problem.prompt, *(part["text"] for part in problem.solution)]


def _limit(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        if seen >= max_chars:
            return
        seen += len(text)
        yield text


def load_tokenizer(folder: Path) -> Tokenizer:
    """The run's tokenizer. Raises ArtifactError when it is missing or damaged."""
    try:
        return Tokenizer.load(folder)
    except ValueError as error:
        raise ArtifactError(f"{error}; make it again with --force tokenizer.") from error


def build_rows(
    config: RunConfig, corpus_folder: Path, tokenizer: Tokenizer, folder: Path
) -> dict[str, Any]:
    """The rows stage: tokenizes and packs text, midtraining and SFT conversations."""
    row = config.model.sequence_len + 1
    results: dict[str, Any] = {}
    digests: list[str] = []
    for split in ("train", "heldout"):
        manifest = _text_rows(corpus_folder, split, tokenizer, row, folder / f"base_{split}")
        results[f"base_{split}"] = _told(manifest)
        digests += manifest.checksums.values()
    for stage, train in (("mid", config.mid), ("sft", config.sft)):
        tasks = run_tasks(train.mixture, config.seed, corpus_folder, tokenizer)
        for split, count in (("train", train.conversations), ("heldout", HELD_OUT_CONVERSATIONS)):
            problems = _problems(stage, split, train, tasks, count)
            target = folder / f"{stage}_{split}"
            text = RowSource(folder / f"base_{split}", tokenizer.hash).tokens
            turns = TURNS if split == "train" else (1,)
            manifest = _chat_rows(problems, count, tokenizer, turns, text, train.text_share, target)
            results[f"{stage}_{split}"] = _told(manifest) | {"conversations": count}
            digests += manifest.checksums.values()
    return {"artifact": sha256_text(*digests), **results}


def _problems(
    stage: str, split: str, train: TrainConfig, tasks: dict[str, Task], count: int
) -> Iterator[Problem]:
    shares = dict(train.mixture)
    if split == "train":
        return mixture(shares, tasks, "train", count, FIRST_INDEX[stage])
    return mixture(shares, tasks, "test", count)


def _grouped(problems: Iterable[Problem], sizes: Sequence[int]) -> Iterator[list[Problem]]:
    """Problems in groups of the sizes in turn; the last may be smaller."""
    source = iter(problems)
    for size in itertools.cycle(sizes):
        group = list(itertools.islice(source, size))
        if not group:
            return
        yield group


def _told(manifest: RowsManifest) -> dict[str, int]:
    return {
        "rows": manifest.rows,
        "tokens": manifest.rows * manifest.row_tokens,
        "trained_tokens": manifest.trained_tokens,
    }


def _text_rows(
    corpus_folder: Path, split: Any, tokenizer: Tokenizer, row: int, folder: Path
) -> RowsManifest:
    with Progress(f"tokenizing {split} text", unit="doc") as progress:

        def encoded() -> Iterator[tuple[Ids, Offsets]]:
            texts = corpus.read(corpus_folder, split)
            while batch := list(itertools.islice(texts, ENCODE_BATCH)):
                yield tokenizer.encode_batch(batch, prepend="<|bos|>")
                progress.advance(len(batch))

        rows, _ = pack_text(*join(encoded()), row, tokenizer.bos)
    return write_rows(folder, rows, None, tokenizer.hash)


def _chat_rows(
    problems: Iterable[Problem],
    count: int,
    tokenizer: Tokenizer,
    turns: Sequence[int],
    text: np.ndarray,
    text_share: float,
    folder: Path,
) -> RowsManifest:
    """Conversations as rows, and `text_share` times as many rows of `text` [N, T+1] behind them.

    The problems are asked in conversations of as many turns as `turns` says, over and over.
    """
    row = text.shape[1]
    with Progress(f"rendering {folder.name}", count, "conversation") as progress:

        def rendered() -> Iterator[tuple[list[int], list[int]]]:
            for problems_of_one in _grouped(problems, turns):
                messages = [m for p in problems_of_one for m in p.conversation["messages"]]
                yield render({"messages": messages}, tokenizer)
                progress.advance(len(problems_of_one))

        joined = join_conversations(rendered(), tokenizer.vocab_size)
    tokens, mask, _ = pack_conversations(*joined, row, tokenizer.bos)
    some = text[len(text) - min(round(text_share * len(tokens)), len(text)) :]
    tokens = np.concatenate([tokens, some])
    mask = np.concatenate([mask, np.ones(some.shape, mask.dtype)])
    return write_rows(folder, tokens, mask, tokenizer.hash)
