"""The datasets that runs read, and the names by which the `epochs` of a stage choose among them.

A source is a dataset repository of the hub at a fixed commit. Facts and where they are from:

    fineweb_edu, climbmix: names, counts    nanochat/dataset.py, November 2025 and July 2026
    the others: names, rows; all licences   the cards of the repositories
    commits                                 what public projects pin; `main` where none does

`size` is approximate; downloads are checked against the repository's own listing (`download.hub`).

Files of the user's own have a role in `epochs`, by which hashes know them: where they are, and what
they are called, decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from jaxchat.config.schema import RunConfig, TrainConfig
from jaxchat.data.files.folders import TALKS, kind_of
from jaxchat.errors import ConfigError

Kind = Literal["text", "chat"]

TEXT_SPLIT = "text"  # the one split of a text source: shards, of which one is for validation
LAST = -1  # the default one for validation
EPOCHS = "mid.epochs or sft.epochs"


@dataclass(frozen=True)
class Source:
    """Files of one dataset: shards of text, or conversations and problems."""

    name: str
    kind: Kind  # text: documents, in a column `text`
    title: str
    repo: str  # owner/name on the hub
    revision: str  # a commit, or a branch, which is looked up once and then pinned (`download.hub`)
    licence: str  # as the repository's page states it
    splits: Mapping[str, str]  # name -> pattern of the paths of its files, for `fnmatch`
    files: tuple[str, ...]  # names known beforehand, for a server that cannot list its files
    size: int  # bytes of all files, about
    rows: Mapping[str, int] = field(default_factory=dict)  # split -> rows; {}: not counted
    characters_per_file: int = 0  # of text, about; 0: unknown
    format: str = "parquet"
    space: str = "datasets"  # kind of repository in the hub's addresses: datasets or models
    again: str = ""  # the command that downloads it; "": jaxchat data download NAME

    def files_of(self, split: str, paths: Iterable[str] | None = None) -> tuple[str, ...]:
        """The paths of a split, in order of name, among `paths` or the names known beforehand.

        Raises ConfigError for a split that the source does not have.
        """
        if split not in self.splits:
            raise ConfigError(
                f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}."
            )
        pattern = self.splits[split]
        given = self.files if paths is None else paths
        return tuple(sorted(path for path in given if fnmatchcase(path, pattern)))

    def has(self, path: str) -> bool:
        """Whether a path belongs to one of the splits."""
        return any(fnmatchcase(path, pattern) for pattern in self.splits.values())


def choose(
    source: Source,
    paths: Sequence[str],
    shards: int | None = None,
    splits: Sequence[str] | None = None,
    held_out: int = LAST,
) -> tuple[str, ...]:
    """Which of a source's paths a run needs, in the order it needs them.

    Of a text source the first `shards` (None: all) of those to train on, then the one that is held
    out for validation, number `held_out`; of a chat source the files of `splits` (None: all), and
    `shards` and `held_out` then mean nothing. Raises ConfigError for shards that there are not.
    """
    if source.kind == "chat":
        named = tuple(source.splits) if splits is None else splits
        return tuple(path for split in named for path in source.files_of(split, paths))
    found = source.files_of(TEXT_SPLIT, paths)
    if held_out >= len(found):
        raise ConfigError(
            f"data.held_out_shard is {held_out:,}, and {source.name} has {len(found):,} shards, "
            "counted from 0; name one of them, or -1 for the last."
        )
    training = [path for path in found if path != found[held_out]]
    if shards is None:
        return (*training, found[held_out])
    if not 1 <= shards < len(found):
        raise ConfigError(
            f"{source.name} has {max(len(found) - 1, 0):,} shards to train on and one for "
            f"validation; {shards:,} training shards cannot be taken."
        )
    return (*training[:shards], found[held_out])


def find(name: str) -> Source:
    """The source of that name; ConfigError, with the names there are, when there is none."""
    if name not in SOURCES:
        raise ConfigError(f"there is no source {name!r}; there are {', '.join(SOURCES)}.")
    return SOURCES[name]


def _text(*, shards: int, **facts: Any) -> Source:
    """Shards as nanochat's repackage_data_reference.py writes them: 250M characters, zstd."""
    return Source(
        kind="text",
        splits={TEXT_SPLIT: "shard_*.parquet"},
        files=tuple(f"shard_{index:05d}.parquet" for index in range(shards)),
        size=shards * 100_000_000,
        characters_per_file=250_000_000,
        **facts,
    )


def _chat(*, parts: Mapping[str, tuple[str, int, int]], **facts: Any) -> Source:
    """`parts`: split -> what its files' names begin with, number of files, number of rows."""
    return Source(
        kind="chat",
        splits={split: f"{stem}-*.parquet" for split, (stem, _, _) in parts.items()},
        files=tuple(
            f"{stem}-{index:05d}-of-{count:05d}.parquet"
            for stem, count, _ in parts.values()
            for index in range(count)
        ),
        rows={split: rows for split, (_, _, rows) in parts.items()},
        **facts,
    )


def _arc(folder: str, train: int, validation: int, test: int, **facts: Any) -> Source:
    rows = {"train": train, "validation": validation, "test": test}
    return _chat(
        repo="allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
        licence="cc-by-sa-4.0",
        parts={split: (f"{folder}/{split}", 1, count) for split, count in rows.items()},
        **facts,
    )


# Bytes, about: CORE's tasks (`download.eval_bundle`); GPT-2's and GPT-4's vocabularies (tiktoken's)
BUNDLE_SIZE = 162_000_000
VOCABULARIES_SIZE = 2_100_000

_SOURCES = (
    _text(
        name="fineweb_edu",
        title="FineWeb-EDU, 100B tokens of educational web pages, shuffled",
        repo="karpathy/fineweb-edu-100b-shuffle",
        revision="main",
        licence="odc-by",
        shards=1_823,
    ),
    _text(
        name="climbmix",
        title="ClimbMix, 400B tokens of mixed web text, shuffled",
        repo="karpathy/climbmix-400b-shuffle",
        revision="915333b4f8b8684f39aeaafea600fea6f43fb703",
        licence="mit; its origin nvidia/Nemotron-ClimbMix is cc-by-nc-4.0",
        shards=6_543,
    ),
    _chat(
        name="smoltalk",
        title="SmolTalk for small models: conversations",
        repo="HuggingFaceTB/smol-smoltalk",
        revision="f73fe857d519ff6ac5af2ea67c4d3834da7b8bcc",
        licence="apache-2.0",
        parts={"train": ("data/train", 4, 460_341), "test": ("data/test", 1, 24_229)},
        size=971_000_000,
    ),
    _chat(
        name="mmlu",
        title="MMLU: multiple choice in 57 subjects",
        repo="cais/mmlu",
        revision="c30699e8356da336a370243923dbaf21066bb9fe",
        licence="mit",
        parts={
            "auxiliary_train": ("all/auxiliary_train", 1, 99_842),
            "test": ("all/test", 1, 14_042),
            "validation": ("all/validation", 1, 1_531),
            "dev": ("all/dev", 1, 285),
        },
        size=51_503_402,
    ),
    _chat(
        name="gsm8k",
        title="GSM8K: grade-school mathematics, solved in steps",
        repo="openai/gsm8k",
        revision="740312add88f781978c0658806c59bc2815b9866",
        licence="mit",
        parts={"train": ("main/train", 1, 7_473), "test": ("main/test", 1, 1_319)},
        size=2_730_000,
    ),
    _arc(
        *("ARC-Easy", 2_251, 570, 2_376),
        name="arc_easy",
        title="ARC-Easy: multiple choice in science",
        size=763_000,
    ),
    _arc(
        *("ARC-Challenge", 1_119, 299, 1_172),
        name="arc_challenge",
        title="ARC-Challenge: the harder questions of ARC",
        size=449_000,
    ),
    _chat(
        name="humaneval",
        title="HumanEval: Python functions to be written",
        repo="openai/openai_humaneval",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        licence="mit",
        parts={"test": ("openai_humaneval/test", 1, 164)},
        size=84_000,
    ),
)
SOURCES: Mapping[str, Source] = {source.name: source for source in _SOURCES}


def is_own(name: str) -> bool:
    """Whether a name in `epochs` is a file of the user's own, by its ending."""
    return bool(kind_of(name, TALKS))


def in_order(names: Iterable[str]) -> list[str]:
    """Names in `epochs` in the order in which they are mixed: datasets, then one's own files."""
    return sorted(names, key=lambda name: (is_own(name), name))


def chat_stages(config: RunConfig) -> dict[str, TrainConfig]:
    """The stages on conversations that a run trains itself."""
    stages = {"mid": config.mid, "sft": config.sft}
    return {name: train for name, train in stages.items() if config.imported.trains(name)}


def own_conversations(config: RunConfig) -> dict[str, str]:
    """Role -> name of the user's own files of conversations that a run trains on."""
    stages = chat_stages(config).items()
    return {role: name for stage, train in stages for name, role in _roles(stage, train).items()}


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


def chat_source(name: str, where: str = EPOCHS) -> Source | None:
    """The dataset that `epochs`, which is `where`, names; None for a file of the user's own.

    Raises ConfigError for what is neither.
    """
    if is_own(name):
        return None
    chats = {source.name: source for source in SOURCES.values() if source.kind == "chat"}
    if name not in chats:
        raise ConfigError(
            f"there is no dataset of conversations {name!r} ({where} names it); "
            f"there are {', '.join(chats)}, and files of your own whose names end in "
            f"{', '.join(TALKS)}."
        )
    return chats[name]


def own_file(name: str, where: str = EPOCHS) -> Path:
    """The file of the user's own that `where` names. Raises ConfigError when it isn't there."""
    path = Path(name).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; {where} names it.")
    return path


def train_split(source: Source) -> str:
    """The split of a dataset that is trained on: MMLU has none of its own."""
    for name in ("train", "auxiliary_train"):
        if name in source.splits:
            return name
    raise ConfigError(
        f"{source.name} has nothing to train on, only {', '.join(source.splits)}; take it out of "
        f"{EPOCHS}."
    )


def train_rows(source: Source) -> int:
    """How many conversations of a dataset there are to train on."""
    return source.rows[train_split(source)]
