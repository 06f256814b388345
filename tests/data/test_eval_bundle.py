"""nanochat's eval_bundle.zip: fetched from a real server, noted, unpacked without harm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
from hub_replica import BUNDLE, bundle_url, write_bundle
from hub_replica import TASKS as FOLDER
from hub_server import Fault, HubServer, until

from jaxchat.data.download import eval_bundle
from jaxchat.data.download.eval_bundle import check_bundle, fetch_bundle, unpack
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.web import RetryPolicy, Web, WebError
from jaxchat.errors import ArtifactError
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.paths import sha256_file

QUICK = RetryPolicy(tries=2, first_tries=1, wait=0.01, longest_wait=0.02, stall=120)
FETCH = """
import sys
from pathlib import Path
from jaxchat.data.download.eval_bundle import fetch_bundle
fetch_bundle(Path(sys.argv[1]), sys.argv[2])
"""


def serve(server, path):
    """Has the server give this file from now on."""
    server.add(BUNDLE, {"eval_bundle.zip": path.read_bytes()})
    return path


def fetch(home, server):
    return fetch_bundle(home, bundle_url(server), Web(policy=QUICK))


@pytest.fixture
def server(tmp_path):
    with HubServer() as running:
        serve(running, write_bundle(tmp_path / "bundle.zip"))
        yield running


def test_the_bundle_comes_once_and_leaves_no_zip_file(server, tmp_path):
    extra = [("__MACOSX/._core.yaml", "x"), ("eval_bundle/a.py", "x")]
    served = serve(server, write_bundle(tmp_path / "more.zip", extra=extra))
    home = tmp_path / "home"
    found = fetch(home, server)
    assert found == home / "eval_bundle"
    assert [t.label for t in read_bundle(found).tasks] == [
        t.label for t in read_bundle(FOLDER).tasks
    ]
    assert not (found / "a.py").exists()
    assert not list(home.rglob("*.zip"))
    noted = json.loads((home / "eval_bundle.json").read_text())
    assert (noted["size"], noted["sha256"]) == (served.stat().st_size, sha256_file(served))
    asked = len(server.asked)
    assert fetch(home, server) == found
    assert len(server.asked) == asked


def test_an_address_without_a_bundle_says_so(server, tmp_path):
    with pytest.raises(WebError, match="is not there"):
        fetch_bundle(tmp_path / "home", f"{bundle_url(server)}.7z", Web(policy=QUICK))
    assert not list((tmp_path / "home").glob("eval_bundle*"))


def test_another_bundle_than_the_first_is_refused(server, tmp_path):
    home = tmp_path / "home"
    first = (fetch(home, server) / "core.yaml").read_bytes()
    shutil.rmtree(home / "eval_bundle")
    other = write_bundle(tmp_path / "other.zip", extra=[("eval_bundle/new.csv", "1")])
    serve(server, other)
    with pytest.raises(ArtifactError, match="not the one that came first") as refused:
        fetch(home, server)
    assert sha256_file(other) in str(refused.value)
    assert str(home / "eval_bundle.json") in str(refused.value), "it does not say what to do"
    assert not (home / "eval_bundle").exists()
    assert not list(home.rglob("*.zip")), "what was refused is kept"
    (home / "eval_bundle.json").unlink()  # as it says
    assert (fetch(home, server) / "new.csv").exists()
    assert (home / "eval_bundle" / "core.yaml").read_bytes() == first


@pytest.mark.parametrize("change", ["other content", "another file", "one less"])
def test_a_folder_that_has_changed_since_is_refused(server, tmp_path, change):
    home = tmp_path / "home"
    folder = fetch(home, server)
    file = sorted(folder.rglob("*.jsonl"))[0]
    if change == "other content":
        file.write_text(file.read_text() + "\n")
    elif change == "another file":
        file = folder / "eval_data" / "more.jsonl"
        file.write_text("{}")
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match=f"{file.name} has changed .* delete the folder"):
        check_bundle(home)
    shutil.rmtree(folder)  # as it says
    assert fetch(home, server) == folder


def test_a_folder_that_was_put_there_is_noted_as_it_is(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "eval_bundle")
    assert check_bundle(tmp_path) == tmp_path / "eval_bundle"
    (tmp_path / "eval_bundle" / "core.yaml").write_text("other")
    with pytest.raises(ArtifactError, match=r"core\.yaml has changed"):
        check_bundle(tmp_path)


def test_a_killed_download_resumes(server, tmp_path):
    home, path = tmp_path / "home", tmp_path / "large.zip"
    with zipfile.ZipFile(write_bundle(path), "a") as archive:  # stored as it is, for its size
        archive.writestr("eval_bundle/random.csv", os.urandom(300_000))
    serve(server, path)
    server.fail("eval_bundle.zip", Fault(cut=200_000, stall=True))
    process = subprocess.Popen([sys.executable, "-c", FETCH, home, bundle_url(server)])
    until(lambda: server.sent.get("eval_bundle.zip", 0) >= 200_000)
    until(lambda: sum(p.stat().st_size for p in home.rglob("*.part")) >= 100_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = home.rglob("*.part")
    here = part.stat().st_size
    fetch(home, server)
    assert [asked.start for asked in server.asked if asked.method == "GET"] == [0, here]
    assert (home / "eval_bundle" / "random.csv").stat().st_size == 300_000


@pytest.mark.parametrize(
    ("base", "own", "address"),
    [
        (None, "", eval_bundle.URL),
        (None, "https://b.org/x.zip", "https://b.org/x.zip"),
        ("https://a.org/data", "", "https://a.org/data/eval_bundle.zip"),
        ("https://a.org/{name}", "", "https://a.org/eval_bundle/eval_bundle.zip"),
        ("https://a.org/data", "https://b.org/x.zip", "https://b.org/x.zip"),
    ],
)
def test_a_plain_server_of_datasets_is_asked_for_the_bundle_too(tmp_path, base, own, address):
    assert eval_bundle.address(Hub(tmp_path, Web(), base_url=base), own) == address


@pytest.mark.parametrize("name", ["eval_bundle/../../out.csv", "eval_bundle/..\\out.csv"])
def test_nothing_is_written_outside_the_folder(tmp_path, name):
    path = write_bundle(tmp_path / "bad.zip", extra=[(name, "x")])
    with pytest.raises(ArtifactError, match="would write outside"):
        unpack(path, tmp_path / "deep" / "bundle")
    assert not list(tmp_path.rglob("out.csv"))
    assert not (tmp_path / "deep" / "bundle").exists()


def test_a_bundle_that_is_too_large_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxchat.data.download.eval_bundle.MAX_BYTES", 1_000)
    with pytest.raises(ArtifactError, match="of at most 1,000 bytes"):
        unpack(write_bundle(tmp_path / "large.zip"), tmp_path / "bundle")


def test_a_damaged_zip_file_is_one_sentence(tmp_path):
    path = write_bundle(tmp_path / "cut.zip")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="no usable zip file"):
        unpack(path, tmp_path / "bundle")
    data = bytearray(write_bundle(path).read_bytes())
    data[60:90] = b"x" * 30  # in what is packed
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="no usable zip file"):
        unpack(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
