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

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxchat.data.records import write_texts
from jaxchat.data.text import Deduplicator, Document, Paths, is_worthwhile, sources
from jaxchat.errors import ArtifactError
from jaxchat.paths import atomic_folder, write_json
from jaxchat.tasks.base import held_out

FORMAT = "jaxchat-corpus-1"
HELDOUT_SHARE = 0.03  # of the files that documents come from

SPLITS = ("train", "heldout")

# how the characters are shared out while every source still has some
_WEIGHTS = {"python": 3, "stdlib": 3, "packages": 4, "readme": 2, "code": 2}
# counted of each source: documents in the corpus and their characters, and those left out
_COUNTED = ("documents", "chars", "filtered", "duplicates", "near_duplicates")

Counts = dict[str, dict[str, int]]  # source -> what is counted -> how many


def build(
    folder: Path,
    *,
    max_chars: int,
    progress: Callable[[int], None] = lambda chars: None,
    paths: Paths | None = None,
) -> dict[str, Any]:
    """Writes the corpus into `folder` and returns its manifest.

    The same installed files give the same corpus, byte for byte. Stops after the document that
    reaches `max_chars`; `progress` gets the characters so far. `paths` says where to
    read, by default this Python's own standard library and packages.

    What `folder` held before is replaced at the very end, or stays if anything goes wrong.
    Raises ArtifactError when nothing usable is found, OSError when the folder cannot be written.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be at least 1, not {max_chars}")
    counts: Counts = {}

    def lines() -> Iterator[tuple[int, dict[str, str]]]:
        chars = 0
        for document in gather(paths or Paths.of_this_python(), max_chars, counts):
            # not the bare name's hash: files are read in its order, held-out ones would all come
            # first; all documents of a file are of one split
            part = int(held_out(f"split/{document.origin}", HELDOUT_SHARE))
            yield part, {"text": document.text, "source": document.source}
            chars += len(document.text)
            progress(chars)

    with atomic_folder(folder) as temporary:
        written = write_texts([temporary / f"{split}.jsonl" for split in SPLITS], lines())
        if not written[0]["documents"]:
            raise ArtifactError(
                "found no documentation to train on; this needs a Python whose standard library "
                "is a folder of .py files."
            )
        manifest = {
            "format": FORMAT,
            "max_chars": max_chars,
            "sources": dict(sorted(counts.items())),
            "splits": dict(zip(SPLITS, written, strict=True)),
        }
        write_json(temporary / "manifest.json", manifest)
    return manifest


def gather(paths: Paths, max_chars: int, counts: Counts | None = None) -> Iterator[Document]:
    """The documents of the corpus: worthwhile, no two alike, sources mixed by their weights.

    `counts` is filled in as the documents go by. At every moment the source that is furthest
    behind its share comes next, so that a low `max_chars` keeps the mixture.
    """
    counts = {} if counts is None else counts
    chars = dict.fromkeys(_WEIGHTS, 0)
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
            counted = counts.setdefault(name, dict.fromkeys(_COUNTED, 0))
            counted[verdict] += 1
            if verdict == "documents":
                chars[name] += len(document.text)
                counted["chars"] = chars[name]
                yield document
