"""nanochat's eval_bundle.zip: fetched from a real server, unpacked without harm."""

import functools
import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from jaxchat.data.eval_bundle import fetch_bundle, unpack
from jaxchat.data.web import Patience, Web, WebError
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.home import ArtifactError

BUNDLE = Path(__file__).parents[1] / "golden" / "core_bundle"
QUICK = Patience(tries=2, first_tries=1, wait=0.01, longest_wait=0.02, stall=120)


def write_zip(path, extra=()):
    """The bundle of the tests as nanochat packs its own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(BUNDLE.rglob("*")):
            if file.is_file():
                archive.write(file, f"eval_bundle/{file.relative_to(BUNDLE)}")
        for name, content in extra:
            archive.writestr(name, content)
    return path


@pytest.fixture
def server(tmp_path):
    """The address of a server of a folder, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def test_the_bundle_comes_once_and_leaves_no_zip_file(server, tmp_path):
    address, folder = server
    served = write_zip(
        folder / "bundle.zip", [("__MACOSX/._core.yaml", "x"), ("eval_bundle/a.py", "x")]
    )
    home = tmp_path / "home"
    found = fetch_bundle(home, f"{address}/bundle.zip", Web(patience=QUICK))
    assert found == home / "eval_bundle"
    assert [t.label for t in read_bundle(found).tasks] == [
        t.label for t in read_bundle(BUNDLE).tasks
    ]
    assert not (found / "a.py").exists()
    assert not list(home.rglob("*.zip"))
    served.unlink()
    assert fetch_bundle(home, f"{address}/bundle.zip", Web(patience=QUICK)) == found


def test_an_address_without_a_bundle_says_so(server, tmp_path):
    address, _ = server
    with pytest.raises(WebError, match="is not there"):
        fetch_bundle(tmp_path / "home", f"{address}/bundle.zip", Web(patience=QUICK))
    assert not (tmp_path / "home" / "eval_bundle").exists()


@pytest.mark.parametrize("name", ["eval_bundle/../../out.csv", "eval_bundle/..\\out.csv"])
def test_nothing_is_written_outside_the_folder(tmp_path, name):
    path = write_zip(tmp_path / "bad.zip", [(name, "x")])
    with pytest.raises(ArtifactError, match="would write outside"):
        unpack(path, tmp_path / "deep" / "bundle")
    assert not list(tmp_path.rglob("out.csv"))
    assert not (tmp_path / "deep" / "bundle").exists()


def test_a_bundle_that_is_too_large_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxchat.data.eval_bundle.MAX_BYTES", 1_000)
    with pytest.raises(ArtifactError, match="of at most 1,000 bytes"):
        unpack(write_zip(tmp_path / "large.zip"), tmp_path / "bundle")


def test_a_damaged_zip_file_is_one_sentence(tmp_path):
    path = write_zip(tmp_path / "cut.zip")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="no usable zip file"):
        unpack(path, tmp_path / "bundle")
    data = bytearray(write_zip(path).read_bytes())
    data[60:90] = b"x" * 30  # in what is packed
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="no usable zip file"):
        unpack(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
