"""A run's text as shards: fetched meanwhile or before, they are the same."""

from collections.abc import Iterator
from pathlib import Path

import hub_replica
import pytest
from hub_server import HubServer
from tiny_shards import TOKENIZER, contents

from jaxchat.config import loading
from jaxchat.config.schema import RunConfig
from jaxchat.data import packing
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import Web
from jaxchat.data.inputs import Inputs, gather, read_inputs
from jaxchat.data.shard_folder import is_whole
from jaxchat.data.shards import prepare_text, text_hash
from jaxchat.errors import ArtifactError

CONFIG = """
[run]
name = "small"
depth = 2
[model]
sequence_len = 64
[data]
source = "fineweb_edu"
shards = 4
[tokenizer]
max_chars = 1
"""


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replica")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_replica, "DOCUMENTS", 20)
        hub_replica.build(folder)
    return folder


@pytest.fixture
def server(replica: Path) -> Iterator[HubServer]:
    with hub_replica.served(replica) as server:
        yield server


def gathered(home: Path, server: HubServer) -> tuple[RunConfig, Inputs, Hub]:
    path = home / "small.toml"
    path.write_text(CONFIG)
    hub, folder = Hub(home, Web(), endpoint=server.url), home / "runs" / "small" / "data"
    config = loading.load(path)
    gather(config, folder, hub)
    return config, read_inputs(folder), hub


def test_what_comes_late_gives_the_same_rows(server: HubServer, tmp_path: Path) -> None:
    config, read, hub = gathered(tmp_path, server)
    assert not all(path.exists() for file in read.text for path in file.paths)
    late = prepare_text(config, read, TOKENIZER, tmp_path / "late", hub, workers=2)
    assert all(path.exists() for file in read.text for path in file.paths)
    here = prepare_text(config, read, TOKENIZER, tmp_path / "here", hub, workers=1)
    assert late.training == here.training
    assert contents(tmp_path / "late") == contents(tmp_path / "here")
    assert is_whole(tmp_path / "late")
    asked = [asked.path for asked in server.asked if asked.host == "store"]
    wanted = [f"shard_{n:05d}.parquet" for n in (1, 2, 3)]
    came = [path.rsplit("/", 1)[-1] for path in asked]
    assert sorted(name for name in came if name in wanted) == wanted, "not each of them once"


def test_the_hash_is_that_of_all_that_decides_the_rows(server: HubServer, tmp_path: Path) -> None:
    _, read, _ = gathered(tmp_path, server)
    first = text_hash(read, TOKENIZER, 65)
    assert text_hash(read, TOKENIZER, 65) == first != text_hash(read, TOKENIZER, 66)
    fewer = Inputs(read.text[1:], read.chat, read.first)
    assert text_hash(fewer, TOKENIZER, 65) != first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "VERSION", -1)
        assert text_hash(read, TOKENIZER, 65) != first


def test_a_dataset_that_has_changed_meanwhile_is_refused(server: HubServer, tmp_path: Path) -> None:
    config, read, _ = gathered(tmp_path, server)
    name = "karpathy/fineweb-edu-100b-shuffle"
    files = dict(server.repos[name].files)
    files["shard_00002.parquet"] = files["shard_00001.parquet"]
    server.add(name, files, "f" * 40)
    hub = Hub(tmp_path, Web(), endpoint=server.url, refresh=True)
    with pytest.raises(ArtifactError, match=r"shard_00002.parquet is no longer what it was"):
        prepare_text(config, read, TOKENIZER, tmp_path / "out", hub, workers=1)
