"""The files of the page: what is served, and how long it may be cached."""

import dataclasses

import httpx
import pytest
from live_server import serve

from jaxchat.serve import app


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / "assets" / "index-1a2b.js").write_text("let a")
    (tmp_path / ".gitkeep").write_text("")
    (tmp_path / "notes.md").write_text("private")
    return tmp_path


def test_files_have_their_paths_types_and_times(folder):
    files = app.read_page(folder)
    assert set(files) == {"/", "/icon.svg", "/assets/index-1a2b.js"}
    assert files["/"].headers["cache-control"] == "no-cache"
    assert files["/"].headers["content-type"] == "text/html; charset=utf-8"
    assert "immutable" in files["/assets/index-1a2b.js"].headers["cache-control"]
    assert files["/assets/index-1a2b.js"].headers["content-type"].startswith("text/javascript")
    assert len({file.headers["etag"] for file in files.values()}) == 3


def test_without_a_page_there_are_no_files(tmp_path):
    assert app.read_page(tmp_path) == {}
    assert app.read_page(tmp_path / "none") == {}


@pytest.fixture
def idle_models(models):
    """Models whose engines are never asked."""
    return [dataclasses.replace(models[0])]


def test_the_page_is_sent_and_found_again(idle_models, folder, monkeypatch):
    monkeypatch.setattr(app.read_page, "__defaults__", (folder,))
    with serve(idle_models, key="a-key-of-some-length") as server, httpx.Client() as client:
        page = client.get(server.url)
        assert (page.status_code, page.text) == (200, "<!doctype html>")
        assert client.head(server.url).headers["content-length"] == "15"
        again = client.get(server.url, headers={"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.text) == (304, "")
        assert client.get(f"{server.url}/assets/index-1a2b.js").text == "let a"
        for path in ("/assets/none.js", "/notes.md", "/assets/../notes.md", "/assets/%2e%2e/x"):
            assert client.get(f"{server.url}{path}").status_code == 404


def test_a_server_without_a_page_says_so(idle_models, tmp_path, monkeypatch):
    monkeypatch.setattr(app.read_page, "__defaults__", (tmp_path,))
    with serve(idle_models) as server:
        answer = server.get("/")
    assert (answer.status_code, answer.text) == (404, app.ABSENT)
