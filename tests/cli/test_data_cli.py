"""`jaxchat data list` and `download`, with a server that looks like the hub."""

import random

import pytest
from hub_server import Fault, HubServer

from jaxchat.cli.main import main
from jaxchat.data.registry import SOURCES


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Small replicas of all sources."""
    random.seed(0)
    for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("JAXCHAT_HOME", str(tmp_path / "home"))
    with HubServer() as server:
        files = {}
        for source in SOURCES.values():
            few = source.files[:4] if source.kind == "text" else source.files
            files.setdefault(source.repo, {}).update(dict.fromkeys(few, random.randbytes(1_000)))
        for source in SOURCES.values():
            commit = "b" * 40 if source.revision == "main" else source.revision
            server.add(source.repo, files[source.repo], commit)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def run(*words):
    """The exit code of `jaxchat data WORDS`."""
    return main(["data", *words])


def test_the_list_names_every_source_and_what_is_here(server, capsys):
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:9]] == list(SOURCES)
    assert "karpathy/climbmix-400b-shuffle" in lines[2]
    assert "cc-by-nc-4.0" in lines[2]
    assert not server.asked
    assert run("download", "gsm8k") == 0
    assert run("download", "fineweb_edu", "--shards", "1") == 0
    capsys.readouterr()
    assert run("list") == 0
    out = capsys.readouterr().out.splitlines()
    assert "  all  " in next(line for line in out if line.startswith("gsm8k"))
    assert "  2 of 4 files  " in next(line for line in out if line.startswith("fineweb_edu"))


def test_all_chat_sources_at_once_and_then_offline(server, capsys, monkeypatch):
    names = [name for name, source in SOURCES.items() if source.kind == "chat"]
    assert run("download", *names) == 0
    out = capsys.readouterr().out
    assert "smoltalk: 5 files, 5.0 kB, in " in out
    assert "humaneval: 1 file, 1.0 kB, in " in out
    assert "checksums" not in out
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert run("download", *names, "--offline", "--verify") == 0
    assert capsys.readouterr().out == out


def test_text_needs_a_number_of_shards(server, capsys):
    assert run("download", "climbmix") == 2
    assert "climbmix has 6,543 shards, 654.3 GB; say how many" in capsys.readouterr().err
    assert run("download", "gsm8k", "--shards", "2") == 2
    assert "have no shards" in capsys.readouterr().err
    assert run("download", "climbmix", "--shards", "all") == 0
    assert "climbmix: 4 files" in capsys.readouterr().out


def test_what_goes_wrong_is_one_sentence(server, capsys):
    assert run("download", "mnist") == 2
    assert "there is no source 'mnist'" in capsys.readouterr().err
    assert run("download", "gsm8k", "--offline") == 1
    assert run("download", "gsm8k", "--base-url", "nowhere") == 2
    capsys.readouterr()
    server.fail("main/train-00000-of-00001.parquet", *[Fault(404)] * 9)
    assert run("download", "gsm8k") == 1
    reported = capsys.readouterr().err
    assert "main/train-00000-of-00001.parquet of gsm8k is not there" in reported
    assert len(reported.strip().splitlines()) == 1


def test_a_server_without_checksums_is_reported(server, capsys):
    url = f"{server.url}/plain/{{repo}}"
    assert run("download", "arc_easy", "arc_challenge", "--base-url", url) == 0
    assert "no checksums: those of the 6 downloaded files are noted" in capsys.readouterr().out
