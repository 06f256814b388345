"""The stage `data`: which files a run reads, and that nothing else decides what it gives."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hub_replica
import pytest
from hub_server import HubServer

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.data import inputs, prepare
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import Web
from jaxchat.data.inputs import own_files_changed
from jaxchat.errors import ArtifactError, ConfigError

CONFIG = """
[run]
name = "small"
depth = 2
[data]
source = "fineweb_edu"
shards = 3
words = 20
[tokenizer]
vocab_size = 512
max_chars = 1
[mid.epochs]
gsm8k = 1
"""


@pytest.fixture
def server(replica: Path) -> Iterator[HubServer]:
    with hub_replica.served(replica) as server:
        yield server


def config(folder: Path, *overrides: str) -> RunConfig:
    path = folder / "small.toml"
    path.write_text(CONFIG)
    return loading.load(path, overrides)


def gather(home: Path, server: HubServer, config: RunConfig, **options: object) -> str:
    hub = Hub(home, Web(), endpoint=server.url, **options)  # type: ignore[arg-type]
    return str(inputs.gather(config, home / "runs" / "small" / "data", hub)["artifact"])


def test_only_what_is_needed_first_comes_and_the_last_shard_is_held_out(
    server: HubServer, tmp_path: Path
) -> None:
    artifact = gather(tmp_path, server, config(tmp_path))
    read = inputs.read_inputs(tmp_path / "runs" / "small" / "data")
    assert read.hash == artifact
    names = [f"shard_{n:05d}.parquet" for n in (0, 1, 2, hub_replica.SHARDS)]
    assert [file.name for file in read.text] == names
    assert read.first == 1  # one shard has more characters than the tokenizer wants
    there = [file.name for file in read.text if file.paths[0].exists()]
    assert there == [names[0], names[3]]
    assert {name: list(splits) for name, splits in read.chat.items()} == {
        "gsm8k": ["train", "test"]
    }
    assert all(path.exists() for path in read.paths("gsm8k", "train"))
    assert len(read.words) >= 20


def test_what_is_there_by_chance_changes_nothing(server: HubServer, tmp_path: Path) -> None:
    first = gather(tmp_path / "one", server, config(tmp_path))
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "two" / "data")
    read = inputs.read_inputs(tmp_path / "one" / "runs" / "small" / "data")
    hub = Hub(tmp_path / "two", Web(), endpoint=server.url)
    for file in inputs.text_files(config(tmp_path).data, hub):  # all shards are there already
        file.local.write_bytes(server.repos["karpathy/fineweb-edu-100b-shuffle"].files[file.path])
    assert gather(tmp_path / "two", server, config(tmp_path)) == first
    assert list(inputs.read_texts(read, 10**9)) == list(
        inputs.read_texts(inputs.read_inputs(tmp_path / "two" / "runs" / "small" / "data"), 10**9)
    )


def test_the_home_can_be_moved(server: HubServer, tmp_path: Path) -> None:
    gather(tmp_path / "old", server, config(tmp_path))
    before = list(
        inputs.read_texts(inputs.read_inputs(tmp_path / "old" / "runs" / "small" / "data"), 5_000)
    )
    (tmp_path / "old").rename(tmp_path / "new")
    read = inputs.read_inputs(tmp_path / "new" / "runs" / "small" / "data")
    assert list(inputs.read_texts(read, 5_000)) == before


def test_a_plain_server_without_checksums_gives_all_shards_at_once(
    server: HubServer, tmp_path: Path
) -> None:
    gather(tmp_path, server, config(tmp_path), base_url=f"{server.url}/plain/{{repo}}")
    read = inputs.read_inputs(tmp_path / "runs" / "small" / "data")
    assert read.first == 3
    assert all(file.paths[0].exists() for file in read.text)
    hub = inputs.read_inputs(tmp_path / "runs" / "small" / "data")
    gather(tmp_path / "hub", server, config(tmp_path))
    listed = inputs.read_inputs(tmp_path / "hub" / "runs" / "small" / "data")
    assert [file.sha256 for file in hub.text] == [file.sha256 for file in listed.text]


def test_a_damaged_text_is_named_when_it_is_read(server: HubServer, tmp_path: Path) -> None:
    gather(tmp_path, server, config(tmp_path))
    folder = tmp_path / "runs" / "small" / "data"
    read = inputs.read_inputs(folder)
    path = read.text[0].paths[0]
    path.write_bytes(path.read_bytes()[:-9] + b"something")
    with pytest.raises(ArtifactError, match=r"shard_00000.parquet is missing or damaged .*--force"):
        list(inputs.read_texts(read, 100))
    (folder / "inputs.json").write_text('{"format": "jaxchat-inputs-1", "text": [{}]}')
    with pytest.raises(ArtifactError, match=r"inputs.json is damaged .*--force data"):
        inputs.read_inputs(folder)


def test_a_folder_of_ones_own_and_own_conversations(server: HubServer, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in "abc":
        (texts / f"{name}.txt").write_text(f"the story of {name} " * 4_000)
    talks = tmp_path / "my talks.jsonl"
    talk = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    talks.write_text(json.dumps(talk) + "\n")
    own = config(
        tmp_path, "data.source=folder", "data.shards=0", f"data.folder={json.dumps(str(texts))}",
        f"mid.epochs.{json.dumps(str(talks))}=3",
    )  # fmt: skip
    artifact = gather(tmp_path, server, own)
    read = inputs.read_inputs(tmp_path / "runs" / "small" / "data")
    assert [file.name for file in read.text] == ["a.txt to b.txt", "c.txt"]  # small ones share
    assert read.first == 1
    assert read.paths(str(talks), "train") == (talks,)
    (texts / "b.txt").write_text("another story " * 4_000)
    assert gather(tmp_path, server, own) != artifact, "another text is no other artefact"

    talks.write_text(json.dumps(talk) + '\n{"messages": []}\n')
    with pytest.raises(ArtifactError, match=r"1 of 2 lines.*\n  line 2 of .*my talks.jsonl"):
        gather(tmp_path, server, own)
    for path in texts.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="holds no"):
        gather(tmp_path, server, own)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mid.epochs.gsm9k=1", "there is no dataset of conversations 'gsm9k'"),
        ("sft.epochs.climbmix=1", "there is no dataset of conversations 'climbmix'"),
        ('sft.epochs."none.jsonl"=1', r"none.jsonl does not exist; sft.epochs names it"),
        ("data.shards=9", "9 training shards cannot be taken"),
    ],
)
def test_what_there_is_not_is_one_sentence(
    server: HubServer, tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        gather(tmp_path, server, config(tmp_path, override))


def test_another_seed_or_name_reads_the_same(server: HubServer, tmp_path: Path) -> None:
    first = gather(tmp_path, server, config(tmp_path))
    other = replace(config(tmp_path), seed=5, name="other")
    assert gather(tmp_path, server, other) == first


def test_what_the_user_writes_is_read_again_when_it_changed_and_leaves_the_text_alone(
    tmp_path: Path, server: HubServer
) -> None:
    persona, talks = tmp_path / "ada.toml", tmp_path / "talks.jsonl"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    persona.write_text('name = "Ada"')
    talks.write_text(f"{json.dumps(talk)}\n")
    plain = config(tmp_path)
    own = config(tmp_path, f"data.persona={persona}", f'sft.epochs."{talks}"=1')
    hub, folder = Hub(tmp_path, Web(), endpoint=server.url), tmp_path / "runs" / "small" / "data"
    before = inputs.gather(plain, folder, hub)
    after = inputs.gather(own, folder, hub)
    assert after["artifact"] != before["artifact"]
    assert after["parts"] == before["parts"], "the tokenizer would be trained again"
    assert inputs.read_inputs(folder).persona == {"name": "Ada"}
    assert not own_files_changed(own, folder)
    persona.write_text('name = "Eve"')
    assert own_files_changed(own, folder)
    persona.unlink()
    assert not own_files_changed(own, folder)
    talks.write_text(f"{json.dumps(talk)}\n" * 2)
    assert own_files_changed(own, folder)


def test_a_vocabulary_that_the_text_cannot_fill_stops_the_run(tmp_path: Path) -> None:
    """Else the model would have thousands of rows that stand for nothing."""
    text = tmp_path / "text"
    text.mkdir()
    lines = "".join(f"The {n}th line is of {n % 7} owls.\n" for n in range(400))
    for name in ("a.txt", "b.txt"):
        (text / name).write_text(lines)
    own = ('data.source="folder"', f'data.folder="{text}"', "data.shards=0", "mid.epochs={}")
    wide = config(tmp_path, *own, "tokenizer.vocab_size=30000", "tokenizer.max_chars=100000")
    inputs.gather(wide, tmp_path / "runs" / "small" / "data", Hub(tmp_path, Web(), offline=True))
    read = inputs.read_inputs(tmp_path / "runs" / "small" / "data")
    with pytest.raises(ConfigError) as caught:
        prepare.train_tokenizer(wide, read, tmp_path / "tokenizer")
    found = re.fullmatch(
        r"the text gives a vocabulary of ([\d,]+) tokens and no more, but tokenizer.vocab_size is "
        r"30,000; give more text, or set tokenizer.vocab_size=(\d+).",
        str(caught.value),
    )
    assert found, caught.value
    assert found[1] == f"{int(found[2]):,}"
    assert not (tmp_path / "tokenizer").exists()
    sizes = f"tokenizer.vocab_size={found[2]}", "tokenizer.max_chars=100000"
    fitting = config(tmp_path, *own, *sizes)
    made = prepare.train_tokenizer(fitting, read, tmp_path / "tokenizer")
    assert made["vocabulary"] == int(found[2])


def test_fields_of_talks_that_are_not_used_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where both stages read them."""
    (texts := tmp_path / "texts").mkdir()
    for name in "ab":
        (texts / f"{name}.txt").write_text(f"the story of {name} " * 4_000)
    ask = {"role": "user", "content": "Hi", "name": "Mia"}
    talk = {"messages": [ask, {"role": "assistant", "content": "Ho"}], "source": "there"}
    (talks := tmp_path / "talks.jsonl").write_text((json.dumps(talk) + "\n") * 31)
    own = ('data.source="folder"', f'data.folder="{texts}"', "data.shards=0", "mid.epochs={}")
    both = [f"{stage}.epochs.{json.dumps(str(talks))}=1" for stage in ("mid", "sft")]
    read = config(tmp_path, *own, *both)
    inputs.gather(read, tmp_path / "runs" / "small" / "data", Hub(tmp_path, Web(), offline=True))
    said = (
        "texts: read 2 .txt\n"
        "talks.jsonl: the fields 'source' (31 conversations), 'name' (31 messages) are not used\n"
    )
    assert capsys.readouterr().out == said
