"""`jaxchat data show`: conversations as the model gets them, with what it learns marked.

Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxchat import paths
from jaxchat.cli.args import Parser, positive, seed
from jaxchat.cli.tokenizer import visible
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.runs import run_dir

if TYPE_CHECKING:
    from rich.text import Text

    from jaxchat.tasks.dataset import Dataset
    from jaxchat.tokenizer import Tokenizer

LEARNED, NOT_LEARNED = "+ ", "  "  # what lines begin with
NEW_LINE = "↵"
_STYLES = {  # (learned, special token)
    (True, False): "green",
    (True, True): "bold green",
    (False, False): "",
    (False, True): "cyan",
}


def add_show(show: Parser) -> None:
    """The options of `jaxchat data show`."""
    show.add_argument(
        "source",
        metavar="SOURCE",
        help="a source or a generated task by name, or a .jsonl or .parquet file of conversations "
        "(.gz, .zst, too), whose `weight` and `train` (0 to 1, false or true) apply; other "
        "fields are counted",
    )
    show.add_argument("files", nargs="*", type=Path, metavar="FILE", help="the source's files")
    show.option("-n", positive, "N", "examples (3)", 3)
    show.option("--seed", seed, None, "chooses the examples (0)", 0)
    show.option("--split", default="train", choices=("train", "test"))
    show.switch("--tokens", "every token with its id")
    show.option("--max-tokens", positive, "N", "cut there, as training does")
    which = show.add_mutually_exclusive_group()
    which.add_argument("--tokenizer", type=Path, metavar="DIR", help="of this folder")
    which.add_argument("--run", help="the tokenizer of this run (default: the last)")
    show.set_defaults(run_command=show_command)


def show_command(args: argparse.Namespace) -> int:
    """Prints examples of one source."""
    from rich.console import Console

    from jaxchat.tasks.mixture import Ingredient, Mixture
    from jaxchat.tokenizer import render

    root = paths.home(args.home)
    files = args.files or _downloaded(root, args.source, args.split)
    dataset = find_dataset(args.source, files, args.split, args.seed, args.n)
    if message := getattr(dataset, "unused_message", ""):
        print(f"jaxchat: {message}", file=sys.stderr)
    if not len(dataset):
        raise ArtifactError(f"{args.source} holds no conversation.")
    tokenizer = _tokenizer(root, args.tokenizer, args.run)
    mixture = Mixture([Ingredient(dataset)], args.seed)
    console = Console(highlight=False, soft_wrap=True)  # it knows terminals and NO_COLOR
    for number in range(min(args.n, len(mixture))):
        _, index = mixture.place(number)
        ids, mask = render(mixture.conversation(number), tokenizer, args.max_tokens)
        console.print(
            f"{dataset.name}, number {index}: {len(ids):,} tokens, {_learned(mask)} "
            f"(lines with {LEARNED.strip()})",
            style="bold",
            markup=False,
        )
        for line in lines_of(ids, mask, tokenizer, with_ids=args.tokens):
            console.print(line)
        console.print()
    return 0


def _learned(mask: Sequence[float]) -> str:
    """The number of learned tokens, and the range of their weights where it is not 1."""
    weights = [weight for weight in mask if weight > 0]
    text = f"{len(weights):,} of them learned"
    if set(weights) <= {1}:
        return text
    low, high = f"{min(weights):g}", f"{max(weights):g}"
    return f"{text}, at weight {low}" + (f" to {high}" if high != low else "")


def _tokenizer(root: Path, folder: Path | None, run: str | None) -> Tokenizer:
    from jaxchat.tokenizer import Tokenizer

    if folder is None:
        try:
            folder = run_dir.find(root, run, ("tokenizer",)) / "tokenizer"
        except ArtifactError as error:
            raise ArtifactError(
                f"{error}, or name a tokenizer's folder with --tokenizer."
            ) from error
        if not run_dir.has_one(folder.parent, ("tokenizer",)):
            others = ", ".join(run_dir.with_one(root, ("tokenizer",)))
            advice = (
                f"name a run that has one with --run: {others}."
                if others
                else "name a tokenizer's folder with --tokenizer, or resume the run."
            )
            raise ArtifactError(f"the run in {folder.parent} has no tokenizer yet; {advice}")
    return Tokenizer.load(folder)


def _downloaded(root: Path, name: str, split: str) -> list[Path]:
    """The files of a dataset of conversations by name; none for another name.

    Raises ArtifactError when they have not been downloaded.
    """
    from jaxchat.data import inputs, registry
    from jaxchat.data.download.hub import open_hub

    source = registry.SOURCES.get(name)
    if source is None or source.kind != "chat":
        return []
    found = inputs.downloaded(name, open_hub(root, offline=True))
    return list(found[split if split in found else next(iter(found))])


def find_dataset(source: str, files: Sequence[Path], split: str, seed: int, count: int) -> Dataset:
    """The data set that the arguments name; of a generated task, `count` problems.

    Raises ConfigError for a name that is neither a task, nor a source with files, nor a file.
    """
    from jaxchat.data.files.folders import TALKS, kind_of
    from jaxchat.tasks import EVERYDAY_WORDS, FILE_SOURCES, TASKS, make_tasks, open_source
    from jaxchat.tasks.dataset import Drawn

    if source in TASKS and not files:
        task = make_tasks([source], seed, EVERYDAY_WORDS)[source]
        return Drawn(task, count, "test" if split == "test" else "train")
    if source in FILE_SOURCES and files:
        return open_source(source, files)
    if kind_of(source, TALKS):
        return open_source("custom", [Path(source), *files])
    raise ConfigError(
        f"there is nothing called {source!r} to show; generated are {', '.join(TASKS)}; downloaded "
        f"{', '.join(FILE_SOURCES)}; or name a file of conversations ({', '.join(TALKS)})."
    )


def lines_of(
    ids: Sequence[int], mask: Sequence[float], tokenizer: Tokenizer, *, with_ids: bool = False
) -> Iterator[Text]:
    """A rendered conversation in lines, each all learned or all not.

    A line ends where the text has a new line (marked), where the mask changes, before the start of
    a turn or a call and behind its end. `with_ids`: every token with its id in brackets. Control
    characters are shown, not sent to the terminal.
    """
    from rich.text import Text

    line, kind, ended = Text(), False, False  # of pieces that are all learned or all not
    for piece, special, learned, ends in _pieces(ids, mask, tokenizer, with_ids):
        starts = special and "_start|>" in piece
        if line and (ended or learned != kind or starts):
            yield Text(LEARNED if kind else NOT_LEARNED) + line
            line = Text()
        kind, ended = learned, ends or (special and not starts)
        line.append(piece, _STYLES[learned, special])
    if line:
        yield Text(LEARNED if kind else NOT_LEARNED) + line


def _pieces(
    ids: Sequence[int], mask: Sequence[float], tokenizer: Tokenizer, with_ids: bool
) -> Iterator[tuple[str, bool, bool, bool]]:
    """(text, whether a special token, whether learned, whether a line ends behind it)."""
    for (special, learned), group in itertools.groupby(
        range(len(ids)), lambda i: (not tokenizer.is_ordinary(ids[i]), bool(mask[i]))
    ):
        run = [ids[i] for i in group]
        if special or with_ids:
            for token in run:
                shown = visible(tokenizer.decode_bytes([token]), "\n", NEW_LINE)
                piece = tokenizer.decode([token]) if special else shown
                number = f"[{token}]" if with_ids else ""
                yield piece + number, special, learned, not special and NEW_LINE in piece
        else:
            *lines, last = visible(tokenizer.decode_bytes(run), "\n", NEW_LINE).split(NEW_LINE)
            for line in lines:
                yield line + NEW_LINE, False, learned, True
            if last:
                yield last, False, learned, False
