"""A corpus that every Python machine carries: its own documentation, in English and code.

The text is read from the files of the standard library and of the installed packages, at run
time and without the network. Python files are parsed with `ast`, never imported or executed.

    python    the language reference and help topics (pydoc_data)
    stdlib    docstrings of the standard library
    packages  docstrings of the installed packages
    readme    the packages' descriptions and documentation files
    code      source files of the standard library, whose docstrings `stdlib` then leaves out

The corpus is a folder of `train.jsonl` and `heldout.jsonl`, one {"text", "source"} a line, and
`manifest.json` with counts and checksums.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jaxchat.data.text import Deduplicator, Document, Paths, is_worthwhile, sources
from jaxchat.errors import ArtifactError
from jaxchat.paths import atomic_folder, sha256_file, write_json
from jaxchat.tasks.base import held_out

FORMAT = "jaxchat-corpus-1"
HELDOUT_SHARE = 0.03  # of the files that documents come from

# how the characters are shared out while every source still has some
_WEIGHTS = {"python": 3, "stdlib": 3, "packages": 4, "readme": 2, "code": 2}
_MANIFEST = "manifest.json"

Split = Literal["train", "heldout"]
_SPLITS: tuple[Split, ...] = ("train", "heldout")


@dataclass(frozen=True)
class SourceCounts:
    """Documents of one source, by verdict."""

    documents: int = 0  # in the corpus
    chars: int = 0  # of these
    filtered: int = 0
    duplicates: int = 0
    near_duplicates: int = 0


@dataclass(frozen=True)
class SplitCounts:
    """One file of the corpus."""

    documents: int
    chars: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Counts of a corpus, and the checksums of its files."""

    format: str
    max_chars: int
    sources: dict[str, SourceCounts]
    splits: dict[str, SplitCounts]

    @property
    def chars(self) -> int:
        """Characters of both splits."""
        return sum(split.chars for split in self.splits.values())


def build(
    folder: Path,
    *,
    max_chars: int,
    progress: Callable[[int], None] | None = None,
    paths: Paths | None = None,
) -> Manifest:
    """Writes the corpus into `folder` and returns its manifest.

    The same installed files give the same corpus, byte for byte. Stops after the document that
    reaches `max_chars`; `progress` gets the characters so far. `paths` says where to
    read, by default this Python's own standard library and packages.

    What `folder` held before is replaced at the very end, or stays if anything goes wrong.
    Raises ArtifactError when nothing usable is found, OSError when the folder cannot be written.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    counts: dict[str, SourceCounts] = {}
    with atomic_folder(folder) as temporary, contextlib.ExitStack() as stack:
        writers = {split: _Writer(temporary / f"{split}.jsonl") for split in _SPLITS}
        for writer in writers.values():
            stack.callback(writer.file.close)
        chars = 0
        for document in gather(paths or Paths.of_this_python(), max_chars, counts):
            writers[_split_of(document.origin)].write(document)
            chars += len(document.text)
            if progress is not None:
                progress(chars)
        if not writers["train"].documents:
            raise ArtifactError(
                "found no documentation to train on; this needs a Python whose standard library "
                "is a folder of .py files."
            )
        splits: dict[str, SplitCounts] = {
            split: writer.finish() for split, writer in writers.items()
        }
        manifest = Manifest(FORMAT, max_chars, dict(sorted(counts.items())), splits)
        write_json(temporary / _MANIFEST, asdict(manifest))
    return manifest


def gather(
    paths: Paths, max_chars: int, counts: dict[str, SourceCounts] | None = None
) -> Iterator[Document]:
    """The documents of the corpus: worthwhile, no two alike, sources mixed by their weights.

    `counts` is filled in as the documents go by. At every moment the source that is furthest
    behind its share comes next, so that a low `max_chars` keeps the mixture.
    """
    chars = dict.fromkeys(_WEIGHTS, 0)
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in _WEIGHTS}
    streams = sources(paths)
    deduplicator = Deduplicator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the syntax of other people's files
        while streams and sum(chars.values()) < max_chars:
            name = min(streams, key=lambda name: (chars[name] / _WEIGHTS[name], name))
            document = next(streams[name], None)
            if document is None:
                del streams[name]
                continue
            verdict = "filtered" if not is_worthwhile(document) else deduplicator.see(document)
            verdicts[name][verdict] += 1
            if verdict == "documents":
                chars[name] += len(document.text)
                yield document
            if counts is not None:
                counts[name] = SourceCounts(chars=chars[name], **verdicts[name])


class _Writer:
    """A JSON-lines file being written, and its counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w", encoding="utf-8", newline="\n")
        self.documents = self.chars = 0

    def write(self, document: Document) -> None:
        line = {"text": document.text, "source": document.source}
        self.file.write(json.dumps(line) + "\n")
        self.documents += 1
        self.chars += len(document.text)

    def finish(self) -> SplitCounts:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return SplitCounts(self.documents, self.chars, sha256_file(self.path))


def _split_of(origin: str) -> Split:
    """The split of all documents of one file."""
    # not the bare name's hash: files are read in its order, held-out ones would all come first
    return "heldout" if held_out(f"split/{origin}", HELDOUT_SHARE) else "train"
