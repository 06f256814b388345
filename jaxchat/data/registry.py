"""The data that runs are made of: each source by name, where it is, its licence, size and format.

A source is a dataset repository of the hub at a fixed commit.
Facts and where they are from:

    fineweb_edu, climbmix: names, counts    nanochat/dataset.py, November 2025 and July 2026
    the others: names, rows; all licences   the cards of the repositories
    commits                                 what public projects pin; `main` where none does

`size` is about; what is downloaded is checked against the repository's own listing (`data.hub`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from jaxchat.errors import ConfigError

Kind = Literal["text", "chat"]

TEXT_SPLIT = "text"  # the one split of a text source: shards, of which one is for validation
LAST = -1  # which one, where nothing else is said


@dataclass(frozen=True)
class Source:
    """Files of one dataset.

    Attributes:
        kind: `text` has shards of documents (a column `text`), one of which, mostly the last in
            order of name, is for validation; `chat` has conversations or problems.
        repo: owner/name of the dataset repository on the hub.
        revision: a commit, or a branch, which is looked up once and then kept (`data.hub`).
        licence: as the repository's page states it.
        splits: name -> pattern of the paths of its files, as `fnmatch` has them.
        rows: name of a split -> conversations or problems in it; empty where not counted.
        files: names known beforehand, for a server that cannot list its files.
        size: bytes of all files, about.
        characters_per_file: of a text source, about; 0 where not known.
        space: what kind of repository it is, as the hub's addresses have it: datasets or models.
        again: the command that downloads it; "": jaxchat data download NAME.
    """

    name: str
    kind: Kind
    title: str
    repo: str
    revision: str
    licence: str
    splits: Mapping[str, str]
    files: tuple[str, ...]
    size: int
    rows: Mapping[str, int] = field(default_factory=dict)
    characters_per_file: int = 0
    format: str = "parquet"
    space: str = "datasets"
    again: str = ""

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

    Of a text source the first `shards` (None: all) of those to train on, and then the one that is
    held out for validation, number `held_out`; of a chat source the files of `splits` (None: all),
    the others have no meaning. Raises ConfigError when there are not so many shards.
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


def _text(name: str, title: str, repo: str, revision: str, licence: str, shards: int) -> Source:
    """Shards as nanochat's repackage_data_reference.py writes them: 250M characters, zstd."""
    return Source(
        name=name,
        kind="text",
        title=title,
        repo=repo,
        revision=revision,
        licence=licence,
        splits={TEXT_SPLIT: "shard_*.parquet"},
        files=tuple(f"shard_{index:05d}.parquet" for index in range(shards)),
        size=shards * 100_000_000,
        characters_per_file=250_000_000,
    )


def _chat(
    name: str,
    title: str,
    repo: str,
    revision: str,
    licence: str,
    splits: Mapping[str, tuple[str, int, int]],
    size: int,
) -> Source:
    """`splits`: name -> what its files' names begin with, how many files, how many rows."""
    return Source(
        name=name,
        kind="chat",
        title=title,
        repo=repo,
        revision=revision,
        licence=licence,
        splits={split: f"{stem}-*.parquet" for split, (stem, _, _) in splits.items()},
        files=tuple(
            f"{stem}-{index:05d}-of-{count:05d}.parquet"
            for stem, count, _ in splits.values()
            for index in range(count)
        ),
        size=size,
        rows={split: rows for split, (_, _, rows) in splits.items()},
    )


def _arc(name: str, title: str, folder: str, rows: tuple[int, int, int], size: int) -> Source:
    return _chat(
        name,
        title,
        "allenai/ai2_arc",
        "210d026faf9955653af8916fad021475a3f00453",
        "cc-by-sa-4.0",
        {
            split: (f"{folder}/{split}", 1, count)
            for split, count in zip(("train", "validation", "test"), rows, strict=True)
        },
        size,
    )


# About, in bytes: CORE's tasks (`data.eval_bundle`), GPT-2's and GPT-4's vocabularies (tiktoken's)
BUNDLE_SIZE = 162_000_000
VOCABULARIES_SIZE = 2_100_000

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        _text(
            "fineweb_edu",
            "FineWeb-EDU, 100B tokens of educational web pages, shuffled",
            "karpathy/fineweb-edu-100b-shuffle",
            "main",
            "odc-by",
            1_823,
        ),
        _text(
            "climbmix",
            "ClimbMix, 400B tokens of mixed web text, shuffled",
            "karpathy/climbmix-400b-shuffle",
            "915333b4f8b8684f39aeaafea600fea6f43fb703",
            "mit; its origin nvidia/Nemotron-ClimbMix is cc-by-nc-4.0",
            6_543,
        ),
        _chat(
            "smoltalk",
            "SmolTalk for small models: conversations",
            "HuggingFaceTB/smol-smoltalk",
            "f73fe857d519ff6ac5af2ea67c4d3834da7b8bcc",
            "apache-2.0",
            {"train": ("data/train", 4, 460_341), "test": ("data/test", 1, 24_229)},
            971_000_000,
        ),
        _chat(
            "mmlu",
            "MMLU: multiple choice in 57 subjects",
            "cais/mmlu",
            "c30699e8356da336a370243923dbaf21066bb9fe",
            "mit",
            {
                "auxiliary_train": ("all/auxiliary_train", 1, 99_842),
                "test": ("all/test", 1, 14_042),
                "validation": ("all/validation", 1, 1_531),
                "dev": ("all/dev", 1, 285),
            },
            51_503_402,
        ),
        _chat(
            "gsm8k",
            "GSM8K: grade-school mathematics, solved in steps",
            "openai/gsm8k",
            "740312add88f781978c0658806c59bc2815b9866",
            "mit",
            {"train": ("main/train", 1, 7_473), "test": ("main/test", 1, 1_319)},
            2_730_000,
        ),
        _arc(
            "arc_easy",
            "ARC-Easy: multiple choice in science",
            "ARC-Easy",
            (2_251, 570, 2_376),
            763_000,
        ),
        _arc(
            "arc_challenge",
            "ARC-Challenge: the harder questions of ARC",
            "ARC-Challenge",
            (1_119, 299, 1_172),
            449_000,
        ),
        _chat(
            "humaneval",
            "HumanEval: Python functions to be written",
            "openai/openai_humaneval",
            "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
            "mit",
            {"test": ("openai_humaneval/test", 1, 164)},
            84_000,
        ),
    )
}
