"""A run's tokenizer and tasks, made from the files that it reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxchat.config.schema import RunConfig, TrainConfig
from jaxchat.data.inputs import Inputs, read_texts
from jaxchat.errors import ConfigError
from jaxchat.progress import Progress
from jaxchat.tasks import Problem, Task, make_tasks, open_source
from jaxchat.tasks.base import Split
from jaxchat.tasks.dataset import FileProblems, FixedTask
from jaxchat.tasks.persona import make_persona
from jaxchat.tokenizer import Tokenizer, bpe

HELD_OUT_CHARACTERS = 2_000_000  # of held-out text that the tokenizer is measured on
SPOKEN = 5_000  # generated problems that the tokenizer sees
# Each stage draws its training problems from a range of its own, so none sees another's draws.
FIRST_INDEX = {"tokenizer": 0, "mid": 0, "sft": 100_000_000, "rl": 200_000_000}


def run_tasks(
    names: Iterable[str], seed: int, inputs: Inputs, tokenizer: Tokenizer
) -> dict[str, Task]:
    """The named tasks of a run: datasets of problems, and those that are generated.

    Raises ConfigError for no task.
    """
    names = list(names)
    generated = [name for name in names if name not in inputs.chat]
    words = inputs.words
    known = always_train(words, tokenizer)
    persona = make_persona(inputs.persona, "the persona of this run")
    try:
        made = make_tasks(generated, seed, words, always_train=known, persona=persona)
    except ValueError as error:
        raise ConfigError(f"{error} (a mixture, eval.tasks or rl.task names it).") from error
    for name in [name for name in names if name not in made]:
        files = {split: inputs.paths(name, split) for split in inputs.chat[name]}
        made[name] = open_task(name, files, "eval.tasks and rl.task")
    return {name: made[name] for name in names}


def open_task(name: str, files: Mapping[str, Sequence[Path]], named_by: str) -> Task:
    """A dataset of problems as a task: `files` are those of its splits.

    Raises ConfigError for one without answers, to be taken out of what it is `named_by`.
    """
    train = next((split for split in ("train", "auxiliary_train") if split in files), None)
    splits = {"train": train, "test": "test" if "test" in files else train}
    problems: dict[str, Any] = {
        role: open_source(name, files[split]) for role, split in splits.items() if split is not None
    }
    if not all(isinstance(dataset, FileProblems) for dataset in problems.values()):
        raise ConfigError(
            f"{name} has conversations but no answers to check; take it out of {named_by}."
        )
    return FixedTask(problems.get("train"), problems.get("test"))


def always_train(words: Iterable[str], tokenizer: Tokenizer) -> list[str]:
    """Words that are one token: their letters must be learned by heart, not from pieces."""
    return [word for word in words if len(tokenizer.encode(f" {word}")) == 1]


def mixture(
    shares: Mapping[str, float], tasks: Mapping[str, Task], split: Split, count: int, first: int = 0
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


def spoken(mid: TrainConfig) -> tuple[object, ...]:
    """The settings of midtraining that decide which conversations the tokenizer sees."""
    return min(mid.conversations, SPOKEN), sorted(mid.mixture.items())


def train_tokenizer(config: RunConfig, inputs: Inputs, folder: Path) -> dict[str, Any]:
    """The stage `tokenizer`: trains on the text and on generated conversations.

    These are of the model's usual persona, so that another one needs no other tokenizer. Raises
    ConfigError where the text has too few pairs to merge for the vocabulary that is asked for.
    """
    shares = dict(config.mid.mixture)
    tasks = make_tasks(shares, config.seed, inputs.words)
    problems = mixture(shares, tasks, "train", min(config.mid.conversations, SPOKEN))
    spoken = ("\n".join([p.prompt, *(part["text"] for part in p.solution)]) for p in problems)
    text = read_texts(inputs, config.tokenizer.max_chars)
    with Progress("training tokenizer", config.tokenizer.vocab_size, "token") as progress:
        tokenizer = bpe.train_tokenizer(
            itertools.chain(text, spoken),
            config.tokenizer.vocab_size,
            tools=config.tokenizer.tool_tokens,
            progress=progress.update,
        )
    if tokenizer.vocab_size < config.tokenizer.vocab_size:
        raise ConfigError(
            f"the text gives a vocabulary of {tokenizer.vocab_size:,} tokens and no more, but "
            f"tokenizer.vocab_size is {config.tokenizer.vocab_size:,}; give more text, or set "
            f"tokenizer.vocab_size={tokenizer.vocab_size}."
        )
    tokenizer.save(folder)
    sample = list(read_texts(inputs, HELD_OUT_CHARACTERS, held_out=True))
    ids, _ = tokenizer.encode_batch(sample)
    return {
        "artifact": tokenizer.hash,
        "vocabulary": tokenizer.vocab_size,
        "bytes_per_token": sum(len(t.encode()) for t in sample) / len(ids),
    }
