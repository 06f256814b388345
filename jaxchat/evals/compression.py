"""How well tokenizers compress: characters and bytes per token, by kind of text.

The texts come with the project and are the same everywhere: short originals, written for it. They
tell how tokenizers compare, not how one does on text of your own.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxchat.evals import vocabularies
from jaxchat.tokenizer.bpe import Tokenizer

TEXTS = tuple(
    "english code maths german spanish russian chinese japanese korean hindi arabic emoji".split()
)
BATCH = 256  # texts that are encoded at a time

Texts = Mapping[str, Iterable[str]]
Counter = Callable[[list[str]], int]  # tokens of some texts in all


@dataclass(frozen=True)
class Compression:
    """Sizes of one text."""

    characters: int
    bytes: int
    tokens: int

    @property
    def characters_per_token(self) -> float:
        """Unicode code points per token."""
        return self.characters / max(self.tokens, 1)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per token."""
        return self.bytes / max(self.tokens, 1)


@dataclass(frozen=True)
class Result:
    """What one tokenizer makes of the texts; `missing` says why there is nothing."""

    name: str
    vocabulary: int
    texts: Mapping[str, Compression]
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """What `to_json` gave."""
        texts = {name: Compression(**sizes) for name, sizes in value["texts"].items()}
        return cls(value["name"], value["vocabulary"], texts, value["missing"])


def read_texts() -> dict[str, list[str]]:
    """The project's own texts by name."""
    folder = importlib.resources.files("jaxchat.evals") / "texts"
    return {name: [(folder / f"{name}.txt").read_text(encoding="utf-8")] for name in TEXTS}


def measure(name: str, tokenizer: Tokenizer, texts: Texts) -> Result:
    """One tokenizer's result. `texts` has a name for each row; they are read once, and not held."""
    return _measure(
        name, tokenizer.vocab_size, lambda batch: len(tokenizer.encode_batch(batch)[0]), texts
    )


def survey(
    tokenizers: Mapping[str, Tokenizer], texts: Texts | None = None, *, folder: Path | None = None
) -> list[Result]:
    """The results of the named tokenizers, and then of GPT-2's and GPT-4's.

    `texts` are by default `read_texts()`; `folder` is where a home keeps vocabularies.
    """
    texts = read_texts() if texts is None else texts
    own = [measure(name, tokenizer, texts) for name, tokenizer in tokenizers.items()]
    return [*own, *(_measure_peer(p, texts, folder) for p in vocabularies.PEERS)]


def _measure_peer(peer: vocabularies.Vocabulary, texts: Texts, folder: Path | None) -> Result:
    try:
        encoding = vocabularies.load(peer, folder)
    except vocabularies.MissingVocabulary as error:
        return Result(peer.name, 0, {}, str(error))

    def count(batch: list[str]) -> int:
        return sum(map(len, encoding.encode_ordinary_batch(batch)))

    return _measure(peer.name, encoding.n_vocab, count, texts)


def _measure(name: str, vocabulary: int, count: Counter, texts: Texts) -> Result:
    return Result(name, vocabulary, {title: _sizes(count, some) for title, some in texts.items()})


def _sizes(count: Counter, texts: Iterable[str]) -> Compression:
    characters = size = tokens = 0
    source = iter(texts)
    while batch := list(itertools.islice(source, BATCH)):
        characters += sum(map(len, batch))
        size += sum(len(text.encode()) for text in batch)
        tokens += count(batch)
    return Compression(characters, size, tokens)


def cells(
    results: Sequence[Result], value: Callable[[Compression], float], title: str = ""
) -> list[tuple[str, ...]]:
    """A table of one value, its head first: a row per text, a column per tokenizer."""
    names = dict.fromkeys(name for result in results for name in result.texts)
    return [
        (title, *(result.name for result in results)),
        ("vocabulary", *(f"{r.vocabulary:,}" if not r.missing else "missing" for r in results)),
        *((name, *(_cell(r.texts.get(name), value) for r in results)) for name in names),
    ]


def _cell(sizes: Compression | None, value: Callable[[Compression], float]) -> str:
    return "-" if sizes is None else f"{value(sizes):.2f}"


def notes(results: Iterable[Result]) -> list[str]:
    """Why columns are missing."""
    return [result.missing for result in results if result.missing]
