"""What a run reads: files of text and of conversations, found, fetched, named (I/O; layer 2).

The stage `data` writes `inputs.json`: the files of text, the last one held out, those of each
dataset of conversations by split, and words of the text for the tasks on words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.config.schema import DataConfig, RunConfig
from jaxchat.data import corpus, own, registry
from jaxchat.data.conversations import chat_source, is_own
from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download
from jaxchat.data.own import NOTHING, Own
from jaxchat.data.shards import ShardInput, hash_of
from jaxchat.data.splitting import split_file
from jaxchat.data.textfiles import TextFiles
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import read_json, sha256_file, sha256_text, write_json
from jaxchat.progress import Progress
from jaxchat.tasks import EVERYDAY_WORDS, select_words
from jaxchat.tasks.custom import Custom

FORMAT = "jaxchat-inputs-1"
FILE = "inputs.json"
WORD_CHARACTERS = 25_000_000  # of the text that words are counted in


@dataclass(frozen=True)
class InputFile:
    """A file, or small ones next to each other, which may still have to be fetched.

    `paths` are where they are or will be; `sha256` is as `shards.hash_of` has it.
    """

    name: str
    sha256: str
    size: int
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Inputs:
    """The files that a run reads.

    Attributes:
        text: files of text; the last one is held out.
        chat: dataset or own file -> split -> its files, which are there.
        first: files of text that the words and the tokenizer are made of; they are there.
        words: of the text, commonest first.
        persona: who the model is (`tasks.persona`); empty: jaxchat.
        own: what of all this the user named.
    """

    text: tuple[InputFile, ...]
    chat: Mapping[str, Mapping[str, tuple[InputFile, ...]]]
    first: int
    words: tuple[str, ...] = ()
    persona: Mapping[str, Any] = field(default_factory=dict)
    own: Own = NOTHING

    @property
    def text_hash(self) -> str:
        """The hash of the text and its words; where the files are does not count."""
        return sha256_text(*(f"text {file.sha256}" for file in self.text), *self.words)

    @property
    def hash(self) -> str:
        """The hash of all that a run reads; the user's own conversations have their roles in it."""
        named = [("text", file) for file in self.text]
        talks = self.own.talks
        chat = {name: splits for name, splits in self.chat.items() if name not in talks.values()}
        chat |= {role: self.chat[name] for role, name in talks.items()}
        for name, splits in sorted(chat.items()):
            named += [(f"{name}/{split}", f) for split, files in splits.items() for f in files]
        persona = [json.dumps(self.persona, sort_keys=True)] if self.persona else []
        return sha256_text(
            *(f"{role} {file.sha256}" for role, file in named), *self.words, *persona
        )

    def paths(self, name: str, split: str) -> tuple[Path, ...]:
        """The files of a split of a dataset of conversations."""
        return tuple(path for file in self.chat[name][split] for path in file.paths)


def read_inputs(folder: Path) -> Inputs:
    """What the stage `data` wrote. Raises ArtifactError when it is missing or damaged."""
    path, home = folder / FILE, _home(folder)
    value = read_json(path)

    def files(entries: Iterable[Mapping[str, Any]]) -> tuple[InputFile, ...]:
        return tuple(
            InputFile(e["name"], e["sha256"], e["size"], tuple(home / path for path in e["paths"]))
            for e in entries
        )

    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, not {FORMAT!r}")
        chat = {
            name: {split: files(entries) for split, entries in splits.items()}
            for name, splits in value["chat"].items()
        }
        words, persona = tuple(value["words"]), value.get("persona", {})
        mine = value.get("own", {})
        mine = Own(**mine | {"content": tuple(mine.get("content", ()))})
        return Inputs(files(value["text"]), chat, value["first"], words, persona, mine)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); make it again with --force data."
        ) from error


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Writes what `read_inputs` reads."""
    write_json(folder / FILE, {"format": FORMAT} | _to_json(inputs, _home(folder)))


def _to_json(inputs: Inputs, home: Path) -> dict[str, Any]:
    def files(entries: Iterable[InputFile]) -> list[dict[str, Any]]:
        return [
            asdict(file) | {"paths": [_below(path, home) for path in file.paths]}
            for file in entries
        ]

    chat = {
        name: {split: files(entries) for split, entries in splits.items()}
        for name, splits in inputs.chat.items()
    }
    return {
        "text": files(inputs.text),
        "first": inputs.first,
        "chat": chat,
        "words": inputs.words,
        "persona": inputs.persona,
        **({"own": asdict(inputs.own)} if inputs.own else {}),
    }


def _home(folder: Path) -> Path:
    """The home of HOME/runs/NAME/data; paths below it are kept relative, as it may be moved."""
    return folder.parents[2]


def _below(path: Path, home: Path) -> str:
    return str(path.relative_to(home) if path.is_relative_to(home) else path)


def gather(config: RunConfig, folder: Path, hub: Hub) -> dict[str, Any]:
    """The stage `data`: finds all files, fetches what is needed first, and names them.

    Of a source of shards come those that the tokenizer is trained on and the held-out one; the
    others come while training goes on. Raises ConfigError and ArtifactError for what there is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chat = _chat_files(config, hub)
    fetched = [file for splits in chat.values() for files in splits.values() for file in files]
    first: int | None = None
    told: dict[str, Any] = {}
    mine = own.named(config)
    if config.data.source in registry.SOURCES:
        text, first = _dataset(config, hub, fetched)
    else:
        _fetch(hub, fetched)
        if config.data.source == "folder":
            text, mine = _own_text(config, folder, mine)
        else:
            text, told = _build_corpus(config.data, folder / "corpus")
    if config.data.source != "machine":
        told = {"files": len(text), "bytes": sum(file.size for file in text)}
    first = len(text) - 1 if first is None else first
    chats = {**_named(chat), **_own_files(mine, _home(folder))}
    inputs = Inputs(tuple(text), chats, first, persona=own.persona(config), own=mine)
    inputs = replace(inputs, words=_words(inputs, config.data.words))
    write_inputs(folder, inputs)
    parts = {"text": inputs.text_hash}
    return {"artifact": inputs.hash, "parts": parts, "words": len(inputs.words), **told}


# ---------------------------------------------------------------------------- text


def _build_corpus(config: DataConfig, folder: Path) -> tuple[list[InputFile], dict[str, Any]]:
    """The documentation that this machine carries, and what the report tells of it."""
    with Progress("gathering text", config.max_chars, "char") as progress:
        manifest = corpus.build(folder, max_chars=config.max_chars, progress=progress.update)
    files = []
    for split in ("train", "heldout"):
        path = folder / f"{split}.jsonl"
        counts = manifest.splits[split]
        files.append(InputFile(path.name, counts.sha256, path.stat().st_size, (path,)))
    return files, {
        "characters": manifest.chars,
        "sources": {name: asdict(counts) for name, counts in manifest.sources.items()},
        "splits": {name: asdict(counts) for name, counts in manifest.splits.items()},
    }


def text_files(config: DataConfig, hub: Hub) -> tuple[RemoteFile, ...]:
    """The shards of a dataset that a configuration names, the last one held out."""
    source = registry.find(config.source)
    return hub.files(source, config.shards or None, held_out=config.held_out_shard)


def _own_text(config: RunConfig, folder: Path, mine: Own) -> tuple[list[InputFile], Own]:
    """The user's own text, the last of it held out; one file alone is split into `folder`."""
    found = own.text(config, _home(folder), partial(print, flush=True))
    mine = replace(mine, content=tuple(entry.sha256 for entry in found))
    if len(found) == 1:
        parts = split_file(found[0], folder / "split", config.model.sequence_len + 1)
        print(parts, flush=True)
        found = list(parts.inputs)
    return list(map(as_file, found)), mine


def as_file(entry: ShardInput) -> InputFile:
    """What shards are made of, as a run keeps it."""
    return InputFile(entry.name, entry.sha256, entry.size, entry.paths)


def _dataset(
    config: RunConfig, hub: Hub, chat: Sequence[RemoteFile]
) -> tuple[list[InputFile], int]:
    """All shards of a dataset, and how many to train on are there; `chat` is fetched, too."""
    files = text_files(config.data, hub)
    training = len(files) - 1
    source = registry.find(config.data.source)
    if all(file.sha256 for file in files):  # else only what has come can be named
        enough = math.ceil(config.tokenizer.max_chars / source.characters_per_file)
        training = min(enough, training)
    _fetch(hub, [*chat, files[-1], *files[:training]])
    return _hashed(files), training


def _hashed(files: Iterable[RemoteFile]) -> list[InputFile]:
    """Files by their sha256, which the list has, the download noted, or is computed now."""
    files = list(files)
    named = []
    with Progress("reading checksums", len(files), "file") as progress:
        for file in files:
            digest = file.sha256 or cache.sha256_of(file) or sha256_file(file.local)
            size = file.size if file.size is not None else file.local.stat().st_size
            named.append(InputFile(file.path, digest, size, (file.local,)))
            progress.advance()
    return named


def _fetch(hub: Hub, files: Sequence[RemoteFile]) -> None:
    if not files:
        return
    with Progress("downloading", sum(file.size or 0 for file in files) // 10**6, "MB") as bar:

        def came(done: int) -> None:
            bar.update(done // 10**6)

        for _ in download(files, hub.web, offline=hub.offline, progress=came):
            pass


def read_texts(inputs: Inputs, max_characters: int, *, held_out: bool = False) -> Iterator[str]:
    """Documents of the held-out file or the first ones, until there are so many characters.

    Raises ArtifactError for a file that is missing or not what its checksum says.
    """
    seen = 0
    for file in inputs.text[-1:] if held_out else inputs.text[: inputs.first]:
        if seen >= max_characters:
            return
        if not all(path.exists() for path in file.paths) or hash_of(file.paths) != file.sha256:
            raise ArtifactError(
                f"{file.paths[0]} is missing or damaged (its checksum is not that of {FILE}); make "
                "it again with --force data."
            )
        for text in TextFiles.of(file.paths):
            yield text
            seen += len(text)
            if seen >= max_characters:
                return


def _words(inputs: Inputs, count: int) -> tuple[str, ...]:
    common = select_words(read_texts(inputs, WORD_CHARACTERS), count)
    return tuple(dict.fromkeys([*common, *EVERYDAY_WORDS]))


# ---------------------------------------------------------------------------- conversations


def data_of(task: str, read: Inputs, seed: int) -> tuple[object, ...]:
    """What the problems of a task depend on: files, or what they are generated from."""
    if task in read.chat:
        return tuple(file.sha256 for files in read.chat[task].values() for file in files)
    return (seed, json.dumps(read.persona, sort_keys=True), sha256_text(*read.words))


def downloaded(name: str, hub: Hub) -> dict[str, tuple[Path, ...]]:
    """Split -> files of a dataset of conversations, of those splits that have been downloaded.

    Nobody is asked for them. Raises ArtifactError when none has been.
    """
    source = registry.find(name)
    found = {}
    for split in source.splits if hub.kept(source) else ():
        files = hub.files(source, splits=[split])
        if all(cache.is_here(file) for file in files):
            found[split] = tuple(file.local for file in files)
    if not found:
        where = "" if hub.root == paths.home(None) else f"--home {hub.root} "
        raise ArtifactError(
            f"{name} has not been downloaded; run: jaxchat data {where}download {name}"
        )
    return found


def chat_names(config: RunConfig) -> list[str]:
    """The datasets and own files that the stages of a run name.

    Raises ConfigError for an unknown one among `epochs`.
    """
    stages = {"mid": config.mid, "sft": config.sft}
    stages = {s: train for s, train in stages.items() if config.imported.trains(s)}
    trained = {name: s for s, train in stages.items() for name in train.epochs}
    for name, stage in trained.items():
        chat_source(name, f"{stage}.epochs")
    tasks = (*config.eval.tasks, config.rl.task)
    problems = [n for n in tasks if n in registry.SOURCES and registry.SOURCES[n].kind == "chat"]
    return sorted({*trained, *problems})  # a run's own configuration has them in another order


Chat = dict[str, dict[str, tuple[RemoteFile, ...]]]  # dataset of the hub -> split -> files


def _chat_files(config: RunConfig, hub: Hub) -> Chat:
    found: Chat = {}
    for name in chat_names(config):
        if not is_own(name):
            source = registry.find(name)
            found[name] = {split: hub.files(source, splits=[split]) for split in source.splits}
    return found


def _named(chat: Chat) -> dict[str, dict[str, tuple[InputFile, ...]]]:
    return {
        name: {split: tuple(_hashed(files)) for split, files in splits.items()}
        for name, splits in chat.items()
    }


def _own_files(mine: Own, home: Path) -> dict[str, dict[str, tuple[InputFile, ...]]]:
    """The user's own conversations, every line checked."""
    found: dict[str, dict[str, tuple[InputFile, ...]]] = {}
    for role, name in mine.talks.items():
        path = own.path_of(name)
        if not path.is_file():
            stage = role.partition(",")[0]
            raise ConfigError(f"{path} does not exist; {stage}.epochs names it.")
        told = Custom([path]).told_unused
        if told and name not in found:  # both stages may name it
            print(told, flush=True)
        found[name] = {"train": (own_file(path, home),)}
    return found


def own_file(path: Path, home: Path) -> InputFile:
    """A file of conversations of the user's own."""
    return InputFile(path.name, own.digest(path, home), path.stat().st_size, (path,))
