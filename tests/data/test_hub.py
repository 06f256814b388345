"""The list of a source's files: from the hub's API, from a plain server, from the cache."""

import functools
import json
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hub_server import COMMIT, Fault, HubServer

from jaxchat.data import registry
from jaxchat.data.download import cache
from jaxchat.data.download.hub import Hub, open_hub
from jaxchat.data.download.transfer import download
from jaxchat.data.download.web import RetryPolicy, Web, WebError
from jaxchat.data.registry import SOURCES, Source
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import DEFAULT_HUB, hub_token, sha256_file

REPO = "someone/problems"
QUICK = RetryPolicy(tries=3, first_tries=2, wait=0.01, longest_wait=0.02, stall=120)
FILES = {
    "README.md": b"of no source",
    "main/train-00000-of-00002.parquet": b"a" * 100,
    "main/train-00001-of-00002.parquet": b"b" * 200,
    "main/test-00000-of-00001.parquet": b"c" * 300,
    "other/train-00000-of-00001.parquet": b"d",
}
SOURCE = Source(
    name="problems",
    kind="chat",
    title="",
    repo=REPO,
    revision=COMMIT,
    licence="mit",
    splits={"train": "main/train-*.parquet", "test": "main/test-*.parquet"},
    files=tuple(sorted(name for name in FILES if name.startswith("main"))),
    size=600,
)


@pytest.fixture
def server():
    with HubServer() as server:
        server.add(REPO, FILES)
        yield server


def hub_of(server, root, **options):
    web = options.pop("web", None) or Web(policy=QUICK)
    return Hub(root, web, **{"endpoint": server.url, **options})


def plain(server, root, **options):
    return hub_of(server, root, base_url=f"{server.url}/plain/{REPO}/", **options)


def paths(files):
    return [file.path for file in files]


def test_the_files_of_the_splits_with_sizes_and_checksums(server, tmp_path):
    files = hub_of(server, tmp_path).files(SOURCE)
    assert paths(files) == [
        "main/train-00000-of-00002.parquet",
        "main/train-00001-of-00002.parquet",
        "main/test-00000-of-00001.parquet",
    ]
    assert [file.size for file in files] == [100, 200, 300]
    assert all(len(file.sha256) == 64 for file in files)
    assert files[0].local == tmp_path / "data/problems" / COMMIT / files[0].path
    assert paths(hub_of(server, tmp_path).files(SOURCE, splits=["test"])) == paths(files)[2:]
    with pytest.raises(ConfigError, match="problems has no split 'dev'; it has train, test"):
        hub_of(server, tmp_path).files(SOURCE, splits=["dev"])


def test_a_list_in_pages_is_read_to_the_end_from_the_same_server(server, tmp_path):
    server.page = 2
    assert len(hub_of(server, tmp_path).files(SOURCE)) == 3  # though Link names another host
    assert len([asked for asked in server.asked if "/tree/" in asked.path]) == 3


def test_a_branch_stays_at_the_commit_where_it_was_first_seen(server, tmp_path):
    source = replace(SOURCE, revision="main")
    old = hub_of(server, tmp_path).listing(source)
    assert old.commit == COMMIT
    server.add(REPO, FILES, commit="f" * 40)
    asked = len(server.asked)
    assert hub_of(server, tmp_path).listing(source).files == old.files
    assert len(server.asked) == asked
    new = hub_of(server, tmp_path, refresh=True).listing(source)
    assert new.commit == "f" * 40
    assert new.files[0].local != old.files[0].local
    assert hub_of(server, tmp_path).listing(source).commit == "f" * 40


def test_a_commit_that_is_given_is_not_looked_up(server, tmp_path):
    hub_of(server, tmp_path).listing(SOURCE)
    assert not [asked for asked in server.asked if "/revision/" in asked.path]


def test_offline_the_list_comes_from_the_cache_whatever_the_endpoint(server, tmp_path):
    files = hub_of(server, tmp_path).files(SOURCE)
    closed = {"endpoint": "http://127.0.0.1:1", "offline": True}
    assert paths(hub_of(server, tmp_path, **closed).files(SOURCE)) == paths(files)
    refresh = hub_of(server, tmp_path, **closed, refresh=True)  # offline wins
    assert paths(refresh.files(SOURCE)) == paths(files)
    with pytest.raises(ArtifactError, match=r"--offline forbids .* jaxchat data download problems"):
        hub_of(server, tmp_path / "other", **closed).files(SOURCE)


def test_no_network_is_one_sentence(server, tmp_path):
    with pytest.raises(WebError, match="cannot be reached") as reported:
        hub_of(server, tmp_path, endpoint="http://127.0.0.1:1").files(SOURCE)
    assert "--offline" in str(reported.value)
    assert "--data-dir" in str(reported.value)
    assert "someone/problems" in str(reported.value)
    with pytest.raises(WebError, match=r"no-such-host.invalid cannot be reached"):
        hub_of(server, tmp_path, endpoint="http://no-such-host.invalid").files(SOURCE)


def test_an_endpoint_that_is_no_address_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"HF_ENDPOINT is 'huggingface.co'; it must be an address"
    ):
        Hub(tmp_path, Web(), endpoint="huggingface.co")


def test_a_private_repository_wants_a_token(server, tmp_path):
    server.token = "secret"
    with pytest.raises(WebError, match=r"problems cannot be had: .* 401 .* set HF_TOKEN"):
        hub_of(server, tmp_path).files(SOURCE)
    wrong = Web(token="other", token_for=server.url, policy=QUICK)
    with pytest.raises(WebError, match="check that HF_TOKEN has access"):
        hub_of(server, tmp_path, web=wrong).files(SOURCE)
    right = hub_of(server, tmp_path, web=Web(token="secret", token_for=server.url, policy=QUICK))
    assert len(list(download(right.files(SOURCE), right.web))) == 3
    stored = [asked for asked in server.asked if asked.host == "store"]
    assert len(stored) == 3
    assert not any("authorization" in asked.headers for asked in stored)


def test_a_repository_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(WebError, match="list of files of someone/else is not there"):
        hub_of(server, tmp_path).files(replace(SOURCE, repo="someone/else"))


def test_a_repository_with_other_files_is_refused(server, tmp_path):
    server.add(REPO, {"a.csv": b""})
    with pytest.raises(ArtifactError, match=r"has no file like main/train-\*.parquet"):
        hub_of(server, tmp_path).files(SOURCE)


@pytest.mark.parametrize("name", ["../../main/train-1.parquet", "/main/train-1.parquet"])
def test_a_file_cannot_be_put_outside_of_the_cache(server, tmp_path, name):
    server.add(REPO, {name: b"a"})
    anywhere = replace(SOURCE, splits={"train": "*.parquet"})
    with pytest.raises(ArtifactError, match="a file cannot be called"):
        hub_of(server, tmp_path).files(anywhere)


def test_a_page_that_wants_you_to_log_in_is_no_list(server, tmp_path):
    server.portal = True
    with pytest.raises(WebError, match="answers with something that is not JSON"):
        hub_of(server, tmp_path).files(SOURCE)


def test_a_damaged_list_in_the_cache_is_reported(server, tmp_path):
    hub = hub_of(server, tmp_path)
    hub.files(SOURCE)
    (path,) = hub.folder(SOURCE).glob("list-*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "other"}))
    with pytest.raises(ArtifactError, match=r"list-\w+.json is damaged"):
        hub_of(server, tmp_path).files(SOURCE)


def test_a_plain_server_is_read_by_its_index_pages(server, tmp_path):
    hub = plain(server, tmp_path)
    files = hub.files(SOURCE)
    assert [file.size for file in files] == [100, 200, 300]
    assert all(file.tag and not file.sha256 for file in files)
    got = [path.read_bytes() for _, path in download(files, hub.web)]
    assert got == [b"a" * 100, b"b" * 200, b"c" * 300]
    assert cache.sha256_of(files[0]) == sha256_file(files[0].local)
    asked = len(server.asked)
    offline = plain(server, tmp_path, offline=True)
    assert offline.files(SOURCE) == files  # with sizes
    assert len(server.asked) == asked


def test_a_plain_server_without_index_pages_has_the_files_that_the_registry_knows(server, tmp_path):
    server.index = False
    hub = plain(server, tmp_path)
    assert [file.size for file in hub.files(SOURCE, splits=["test"])] == [300]
    asked_for = [asked.path for asked in server.asked if asked.method == "HEAD"]
    assert asked_for == [f"/plain/{REPO}/main/test-00000-of-00001.parquet"]  # no other
    missing = replace(SOURCE, files=(*SOURCE.files, "main/train-9.parquet"))
    with pytest.raises(WebError, match=r"main/train-9.parquet of problems is not there"):
        plain(server, tmp_path / "other").files(missing)


@pytest.mark.parametrize("tags", [True, False])
def test_a_part_from_a_plain_server_is_resumed_only_if_it_can_be_known(server, tmp_path, tags):
    server.tags = tags
    name = "main/test-00000-of-00001.parquet"
    server.fail(name, Fault(cut=100))
    hub = plain(server, tmp_path)
    assert len(list(download(hub.files(SOURCE, splits=["test"]), hub.web))) == 1
    starts = [asked.start for asked in server.asked if asked.path.endswith(name)][1:]
    assert starts == ([0, 100] if tags else [0, 0])


def test_a_plain_file_that_changed_meanwhile_comes_again(server, tmp_path):
    name = "main/test-00000-of-00001.parquet"
    server.fail(name, Fault(cut=100), Fault(404))
    hub = plain(server, tmp_path)
    files = hub.files(SOURCE, splits=["test"])
    with pytest.raises(WebError, match="is not there"):
        list(download(files, hub.web))
    assert cache.part_size(files[0]) == 100
    server.add(REPO, {**FILES, name: b"e" * 300})  # its tag is another than that of the list
    ((_, path),) = download(files, hub.web)
    assert path.read_bytes() == b"e" * 300


def test_a_plain_server_that_does_not_know_head(server, tmp_path):
    server.heads = False
    server.fail("main/test-00000-of-00001.parquet", Fault(cut=7))
    hub = plain(server, tmp_path)
    files = hub.files(SOURCE)
    assert [file.size for file in files] == [None] * 3
    got = [path.read_bytes() for _, path in download(files, hub.web)]
    assert got == [b"a" * 100, b"b" * 200, b"c" * 300]  # though nothing was known, not even a size
    asked = len([a for a in server.asked if a.method == "GET"])
    list(download(hub.files(SOURCE), hub.web))
    assert len([a for a in server.asked if a.method == "GET"]) == asked


def test_a_folder_that_pythons_own_server_serves(tmp_path):
    for name, data in FILES.items():
        (tmp_path / "served" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "served" / name).write_bytes(data)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        base_url = f"http://127.0.0.1:{server.server_port}"
        hub = Hub(tmp_path / "home", Web(policy=QUICK), base_url=base_url)
        files = hub.files(SOURCE)
        assert files[0].tag.endswith(" GMT")  # it has no ETag
        got = {file.path: path.read_bytes() for file, path in download(files, hub.web)}
        server.shutdown()
    assert got == {path: FILES[path] for path in SOURCE.files}


def test_a_base_url_may_name_the_source(server, tmp_path):
    hub = hub_of(server, tmp_path, base_url=f"{server.url}/plain/{{repo}}")
    assert hub.address(SOURCE) == f"{server.url}/plain/{REPO}"
    assert len(hub.files(SOURCE)) == 3


def test_the_environment_says_endpoint_token_and_offline(tmp_path, monkeypatch):
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub_token() is None
    (tmp_path / "token").write_text("from the file\n")
    assert hub_token() == "from the file"
    monkeypatch.setenv("HF_TOKEN", " given ")
    assert hub_token() == "given"
    assert open_hub(tmp_path).endpoint == DEFAULT_HUB
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_hub(tmp_path).endpoint == "https://mirror.example"
    assert open_hub(tmp_path).offline


def test_every_source_of_the_registry_is_found_by_its_patterns(server, tmp_path):
    for source in SOURCES.values():
        small = source.files[:3] + source.files[-1:]
        server.add(source.repo, dict.fromkeys(("README.md", *small), b"x"), commit="a" * 40)
        pinned = replace(source, revision="a" * 40)
        found = hub_of(server, tmp_path).files(pinned)
        assert set(paths(found)) == set(small)


def test_the_last_shard_is_always_there(server, tmp_path):
    source = registry.find("climbmix")
    server.add(source.repo, {f"shard_{i:05d}.parquet": b"x" for i in range(9)}, source.revision)
    hub = hub_of(server, tmp_path)
    assert paths(hub.files(source, shards=2)) == [f"shard_0000{i}.parquet" for i in (0, 1, 8)]
    with pytest.raises(ConfigError, match="8 shards to train on"):
        hub.files(source, shards=9)
