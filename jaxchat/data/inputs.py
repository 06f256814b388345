"""The files that a run reads: found, fetched as far as needed first, hashed and recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxchat import paths
from jaxchat.config.schema import DataConfig, RunConfig
from jaxchat.data import corpus, own, registry
from jaxchat.data.download import cache
from jaxchat.data.download.cache import RemoteFile
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download_all
from jaxchat.data.files.textfiles import TextFiles
from jaxchat.data.own import NOTHING, InputFile, Own, hash_of
from jaxchat.data.records import InvalidRecord, read_record
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import sha256_file, sha256_text, write_json
from jaxchat.progress import Progress
from jaxchat.tasks import EVERYDAY_WORDS, select_words
from jaxchat.tasks.conversations import Custom

FORMAT = "jaxchat-inputs-1"
FILE = "inputs.json"
WORD_CHARACTERS = 25_000_000  # of the text that words are counted in


Splits = Mapping[str, tuple[InputFile, ...]]  # split -> its files


@dataclass(frozen=True)
class Inputs:
    """The files that a run reads."""

    text: tuple[InputFile, ...]  # the last one is held out
    chat: Mapping[str, Splits]  # dataset or own file -> its files, which are there
    first: int  # files of text that words and tokenizer are made of; they are there
    words: tuple[str, ...] = ()  # of the text, commonest first
    persona: Mapping[str, Any] = field(default_factory=dict)  # `tasks.persona`; {}: jaxchat
    own: Own = NOTHING  # what of all this the user named
    format: str = field(default="", compare=False)  # on disk, where paths below the home are short

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
    """The record of the stage `data`. Raises ArtifactError when it is missing or damaged."""
    path, home = folder / FILE, _home(folder)

    def placed(files: Iterable[InputFile]) -> tuple[InputFile, ...]:
        return tuple(replace(file, paths=tuple(home / p for p in file.paths)) for file in files)

    try:
        read = read_record(path, Inputs)
        if read.format != FORMAT:
            raise InvalidRecord(f"format {read.format!r}, not {FORMAT!r}")
    except InvalidRecord as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); make it again with --force data."
        ) from error
    chat = {
        name: {split: placed(files) for split, files in splits.items()}
        for name, splits in read.chat.items()
    }
    return replace(read, text=placed(read.text), chat=chat)


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Writes the record that `read_inputs` reads."""
    home = _home(folder)

    def below(path: Path) -> str:
        return str(path.relative_to(home) if path.is_relative_to(home) else path)

    record = asdict(inputs) | {"format": FORMAT}
    if not inputs.own:
        del record["own"]
    write_json(folder / FILE, json.loads(json.dumps(record, default=below)))


def _home(folder: Path) -> Path:
    """The home of HOME/runs/NAME/data; paths below it are kept relative, as it may be moved."""
    return folder.parents[2]


def gather(config: RunConfig, folder: Path, hub: Hub) -> dict[str, Any]:
    """The stage `data`: finds all files, fetches what is needed first, and names them.

    Of a source of shards come those that the tokenizer is trained on and the held-out one; the
    others are downloaded during training. Raises ConfigError and ArtifactError for missing files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [registry.find(name) for name in chat_names(config) if not registry.is_own(name)]
    remote = {s.name: {split: hub.files(s, splits=[split]) for split in s.splits} for s in sources}
    wanted = [file for splits in remote.values() for files in splits.values() for file in files]
    home, mine = _home(folder), own.named(config)
    report: dict[str, Any] = {}
    if config.data.source in registry.SOURCES:
        text, first = _dataset(config, hub, wanted)
    else:
        if wanted:
            download_all(wanted, hub.web, offline=hub.offline)
        if config.data.source == "folder":
            found = own.text(config, home, report=True)
            mine = replace(mine, content=tuple(file.sha256 for file in found))
            row_tokens = config.model.sequence_len + 1
            text = own.with_held_out(found, folder / "split", row_tokens)
        else:
            text, report = _build_corpus(config.data, folder / "corpus")
        first = len(text) - 1
    if config.data.source != "machine":
        report = {"files": len(text), "bytes": sum(file.size for file in text)}
    chat: dict[str, Splits] = {
        name: {split: tuple(_hashed(files)) for split, files in splits.items()}
        for name, splits in remote.items()
    }
    chat |= _own_files(mine, home)
    inputs = Inputs(tuple(text), chat, first, persona=own.persona(config), own=mine)
    common = select_words(read_texts(inputs, WORD_CHARACTERS), config.data.words)
    inputs = replace(inputs, words=tuple(dict.fromkeys([*common, *EVERYDAY_WORDS])))
    write_inputs(folder, inputs)
    parts = {"text": inputs.text_hash}
    return {"artifact": inputs.hash, "parts": parts, "words": len(inputs.words), **report}


def _build_corpus(config: DataConfig, folder: Path) -> tuple[list[InputFile], dict[str, Any]]:
    """The documentation that this machine carries, and its part of the report."""
    with Progress("gathering text", config.max_chars, "char") as progress:
        manifest = corpus.build(folder, max_chars=config.max_chars, progress=progress.update)
    paths = [folder / f"{split}.jsonl" for split in corpus.SPLITS]
    files = [own.as_input(path, manifest["splits"][path.stem]["sha256"]) for path in paths]
    characters = sum(split["chars"] for split in manifest["splits"].values())
    parts = {name: manifest[name] for name in ("sources", "splits")}
    return files, {"characters": characters, **parts}


def text_files(config: DataConfig, hub: Hub) -> tuple[RemoteFile, ...]:
    """The shards of a dataset that a configuration names, the last one held out."""
    source = registry.find(config.source)
    return hub.files(source, config.shards or None, held_out=config.held_out_shard)


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
    download_all([*chat, files[-1], *files[:training]], hub.web, offline=hub.offline)
    return _hashed(files), training


def _hashed(files: Sequence[RemoteFile]) -> list[InputFile]:
    """Files by their sha256, which the list has, the download noted, or is computed now."""
    named = []
    with Progress("reading checksums", len(files), "file") as progress:
        for file in files:
            digest = file.sha256 or cache.sha256_of(file) or sha256_file(file.local)
            size = file.size if file.size is not None else file.local.stat().st_size
            named.append(InputFile(file.path, digest, size, (file.local,)))
            progress.advance()
    return named


def read_texts(inputs: Inputs, max_characters: int, *, held_out: bool = False) -> Iterator[str]:
    """Documents of the held-out file or the first ones, up to `max_characters`.

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


def data_of(task: str, read: Inputs, seed: int) -> tuple[object, ...]:
    """The data that the problems of a task depend on: files, or what they are generated from."""
    if task in read.chat:
        return tuple(file.sha256 for files in read.chat[task].values() for file in files)
    return (seed, json.dumps(read.persona, sort_keys=True), sha256_text(*read.words))


def downloaded(name: str, hub: Hub) -> dict[str, tuple[Path, ...]]:
    """Split -> files of a dataset of conversations, of those splits that have been downloaded.

    No server is asked. Raises ArtifactError when none has been.
    """
    source = registry.find(name)
    found = {}
    for split in source.splits if hub.saved(source) else ():
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
    stages = registry.chat_stages(config).items()
    trained = {name: stage for stage, train in stages for name in train.epochs}
    for name, stage in trained.items():
        registry.chat_source(name, f"{stage}.epochs")
    tasks = (*config.eval.tasks, config.rl.task)
    problems = [n for n in tasks if n in registry.SOURCES and registry.SOURCES[n].kind == "chat"]
    return sorted({*trained, *problems})  # a run's own configuration has them in another order


def _own_files(mine: Own, home: Path) -> dict[str, Splits]:
    """The user's own conversations, every line checked."""
    found: dict[str, Splits] = {}
    for role, name in mine.talks.items():
        path = registry.own_file(name, f"{role.partition(',')[0]}.epochs")
        unused = Custom([path]).unused_message
        if unused and name not in found:  # both stages may name it
            own.say(unused)
        found[name] = {"train": (own.one_file(path, home),)}
    return found


def own_files_changed(config: RunConfig, folder: Path) -> bool:
    """Whether the user's own files have other content than when `gather` read them.

    A missing file does not count: what was made of it is there, and a run can be moved. Where a
    file has only moved, its new place is recorded. Raises ConfigError for a name without a file.
    """
    if not own.named(config):
        return False
    read = read_inputs(folder)
    found = _found_again(config, read, _home(folder))
    if found not in (None, read):
        write_inputs(folder, found)
    return found is None


def _found_again(config: RunConfig, read: Inputs, home: Path) -> Inputs | None:
    """Inputs with the user's own files at their places now; None where one has other content.

    Where a run has no record of its text's content, it is recorded now.
    """
    now = own.named(config)
    before = read.own or now  # nothing: of a run made before they were recorded
    there = now.persona and not _is_gone(now.persona, before.persona)
    if there and own.persona(config) != read.persona:
        return None
    chat = {n: splits for n, splits in read.chat.items() if n not in before.talks.values()}
    for role, name in now.talks.items():
        old = before.talks.get(role)
        if old is None:
            return None
        splits = read.chat[old]
        if not _is_gone(name, old):
            file = own.one_file(own.path_of(name), home)
            if [file.sha256] != [one.sha256 for one in splits["train"]]:
                return None
            splits = {"train": (file,)}
        chat[name] = splits
    text, content = read.text, before.content
    if now.folder and not _is_gone(now.folder, before.folder):
        found = tuple(own.text(config, home))
        hashes = tuple(file.sha256 for file in found)
        same = hashes == tuple(file.sha256 for file in text)
        if content and hashes != content:
            return None
        if not content:
            made_of = "it is what the run was made of."
            if not same:
                made_of = (
                    "the run was made of something else, before that was recorded, and stays as it "
                    "is: --force data restarts with what is there now."
                )
            count = sum(len(file.paths) for file in found)
            own.say(
                f"{own.path_of(now.folder)}: what it holds now ({count:,} files) is recorded; "
                f"{made_of}"
            )
        text, content = found if same else text, hashes
    return replace(read, chat=chat, text=text, own=replace(now, content=content))


def _is_gone(name: str, before: str) -> bool:
    """Whether a file is missing. Raises ConfigError where it was not so named before."""
    path = own.path_of(name)
    if name != before and not path.exists():
        raise ConfigError(f"{path} does not exist; correct its name.")
    return not path.exists()
