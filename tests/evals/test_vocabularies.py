"""GPT-2's and GPT-4's vocabularies: fetched from a real server, checked, and compared with."""

import base64
import dataclasses
import hashlib
import importlib.metadata

import pytest
from hub_server import Fault, HubServer

from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import RetryPolicy, Web
from jaxchat.evals import compression
from jaxchat.evals.compression import (
    GPT2,
    GPT4,
    PEERS,
    fetch_vocabularies,
    importlib,
    load_vocabulary,
    vocabulary_folder,
)
from jaxchat.tokenizer import Tokenizer

QUICK = RetryPolicy(tries=2, first_tries=1, wait=0.01, longest_wait=0.02)
STORE = "tiktoken/store"
# Small ones in the formats of the real files: GPT-2's merges, and tiktoken's list of tokens.
MERGES = "#version: 0.2\nĠ t\nh e\nĠt he\n".encode()
TOKENS = [*(bytes([byte]) for byte in range(256)), b" t", b"he", b" the"]
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(t), rank) for rank, t in enumerate(TOKENS))
FILES = {GPT2.path: MERGES, GPT4.path: RANKS}


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    """The small files are those that tiktoken asks for; nothing else is on this machine."""

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def small(peer):
        return dataclasses.replace(peer, sha256=hashlib.sha256(FILES[peer.path]).hexdigest())

    load_vocabulary.cache_clear()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    monkeypatch.setattr(compression, "PEERS", tuple(map(small, PEERS)))


@pytest.fixture
def server():
    with HubServer() as running:
        running.add(STORE, dict(FILES))
        yield running


def hub_in(home, **options):
    return Hub(home, Web(policy=QUICK), **options)


def columns(home):
    """The table's head, and how many characters a token of each has in a text."""
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
    found = compression.survey(
        {"mine": tokenizer}, {"text": [" the the"]}, folder=vocabulary_folder(home)
    )
    head, _, row = compression.cells(found, lambda s: s.characters_per_token)
    return dict(zip(head[1:], row[1:], strict=True))


def test_fetched_once_and_compared_with(server, tmp_path):
    assert columns(tmp_path) == {"mine": "1.00", "GPT-2": "-", "GPT-4": "-"}
    fetch_vocabularies(hub_in(tmp_path), f"{server.url}/plain/{STORE}")
    assert columns(tmp_path) == {"mine": "1.00", "GPT-2": "4.00", "GPT-4": "4.00"}
    asked = len(server.asked)
    assert asked == 2
    fetch_vocabularies(hub_in(tmp_path), f"{server.url}/plain/{STORE}")
    assert len(server.asked) == asked, "what is there was asked for again"


def test_asked_of_a_plain_server_of_datasets(server, tmp_path):
    server.add("mine/tiktoken", dict(FILES))
    fetch_vocabularies(hub_in(tmp_path, base_url=f"{server.url}/plain/mine/{{name}}"), "")
    assert columns(tmp_path)["GPT-4"] == "4.00"


@pytest.mark.parametrize(("offline", "url"), [(True, ""), (False, "none")])
def test_the_network_is_not_asked_where_it_must_not(server, tmp_path, capsys, offline, url):
    hub = hub_in(tmp_path, base_url=f"{server.url}/plain/{STORE}", offline=offline)
    fetch_vocabularies(hub, url)
    assert not server.asked
    assert not capsys.readouterr().out
    assert columns(tmp_path)["GPT-2"] == "-"


def test_what_cannot_be_had_is_a_line(server, tmp_path, capsys):
    fetch_vocabularies(hub_in(tmp_path), f"{server.url}/plain/nothing/here")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tokenizers are not compared with GPT-2's and GPT-4's: ")
    assert "answers 404" in line
    assert columns(tmp_path)["GPT-2"] == "-"


def test_wrong_bytes_are_not_taken(server, tmp_path, capsys):
    server.fail(GPT2.path, *[Fault(wrong=True)] * 9)
    fetch_vocabularies(hub_in(tmp_path), f"{server.url}/plain/{STORE}")
    assert capsys.readouterr().out.startswith("tokenizers are not compared with")
    assert columns(tmp_path)["GPT-2"] == "-"
