"""One request: proxies, redirects, tokens, and what failures mean."""

import http.client
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from hub_server import COMMIT, Fault, HubServer

from jaxchat import paths
from jaxchat.data.download.hub import Hub
from jaxchat.data.download.transfer import download
from jaxchat.data.download.web import (
    RetryPolicy,
    TransientError,
    Web,
    WebError,
    _Redirects,
    check_address,
    fetch_text,
)
from jaxchat.data.registry import Source
from jaxchat.errors import ConfigError

QUICK = RetryPolicy(tries=3, first_tries=2, wait=0.01, longest_wait=0.02, stall=120)
REPO = "someone/things"


@pytest.fixture
def server():
    with HubServer() as server:
        server.add(REPO, {"a.parquet": b"abc"})
        yield server


class Proxy(ThreadingHTTPServer):
    """Passes requests on, and notes them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.seen = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _ProxyHandler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_CONNECT(self):
        self.server.seen.append(f"CONNECT {self.path}")
        self.send_error(403)

    def do_GET(self):
        self.server.seen.append(self.path)
        url = urlsplit(self.path)
        connection = http.client.HTTPConnection(url.netloc)
        passed = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request("GET", f"{url.path}?{url.query}", headers=passed)
        response = connection.getresponse()
        body = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def proxy(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    proxy = Proxy()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


def source():
    splits = {"all": "*.parquet"}
    return Source("things", "chat", "", REPO, COMMIT, "mit", splits, (), 3)


def test_everything_goes_through_the_proxy_that_the_environment_names(
    server, proxy, tmp_path, monkeypatch
):
    monkeypatch.setenv("http_proxy", proxy.url)
    hub = Hub(tmp_path, Web(proxies=paths.proxies(), policy=QUICK), endpoint=server.url)
    ((_, path),) = download(hub.files(source()), hub.web)
    assert path.read_bytes() == b"abc"
    asked = [
        f"{server.store_url if a.host == 'store' else server.url}{a.path}" for a in server.asked
    ]
    assert [seen.split("?")[0] for seen in proxy.seen] == asked  # the store's too


def test_no_proxy_is_heeded(server, proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web = Web(proxies={"http": proxy.url}, policy=QUICK)
    fetch_text(web, f"{server.url}/plain/{REPO}/a.parquet", "it")
    assert not proxy.seen


def test_a_proxy_that_refuses_is_reported(proxy):
    web = Web(proxies={"https": proxy.url}, policy=QUICK)
    with pytest.raises(WebError, match=r"hub.invalid cannot be reached .*403 Forbidden"):
        fetch_text(web, "https://hub.invalid/x", "it")
    assert proxy.seen == ["CONNECT hub.invalid:443"] * QUICK.first_tries


def test_the_token_stays_with_its_server(server):
    web = Web(token="secret", token_for=server.url, policy=QUICK)
    with web.open(f"{server.url}/datasets/{REPO}/resolve/{COMMIT}/a.parquet", "it") as answer:
        assert answer.text() == "abc"
    assert [a.headers.get("authorization") for a in server.asked] == ["Bearer secret", None]
    with web.open(f"{server.store_url}/{REPO}//a.parquet", "it") as answer:
        assert answer.text() == "abc"
    assert "authorization" not in server.asked[-1].headers


def redirected(old, new, method="GET"):
    request = urllib.request.Request(old, headers={"Authorization": "x"}, method=method)
    return _Redirects().redirect_request(request, None, 302, "Found", {}, new)


def test_a_redirect_within_a_server_keeps_the_token_and_the_method():
    new = redirected("https://a.example/x", "https://a.example:443/y", "HEAD")
    assert new.get_header("Authorization") == "x"
    assert new.get_method() == "HEAD"
    assert (
        redirected("https://a.example/x", "https://b.example/x").get_header("Authorization") is None
    )
    assert (
        redirected("http://a.example/", "http://a.example:8/").get_header("Authorization") is None
    )


def test_a_redirect_away_from_https_is_refused():
    with pytest.raises(urllib.error.HTTPError, match="away from https"):
        redirected("https://a.example/x", "http://a.example/x")


def test_a_redirect_to_no_web_server_is_refused():
    with pytest.raises(urllib.error.HTTPError, match=r"away from http$"):
        redirected("http://a.example/x", "ftp://a.example/x")
    assert redirected("http://a.example/x", "https://a.example/x").full_url.startswith("https:")


def test_a_server_that_is_not_there_is_given_up_sooner_than_one_that_failed(server):
    web = Web(policy=QUICK)
    with pytest.raises(WebError, match=r"it is wanted, but 127.0.0.1:1 cannot be reached"):
        fetch_text(web, "http://127.0.0.1:1/x", "it")
    assert not web.reached
    server.fail("a.parquet", *[Fault(500)] * 9)
    with pytest.raises(WebError, match=r"it cannot be had: .* 500 .*, 3 times in a row"):
        fetch_text(web, f"{server.url}/plain/{REPO}/a.parquet", "it")
    assert len(server.asked) == QUICK.tries


def test_an_answer_that_breaks_off_is_passing(server):
    server.fail("a.parquet", Fault(cut=1), Fault())
    url = f"{server.url}/plain/{REPO}/a.parquet"
    with Web().open(url, "it") as answer, pytest.raises(TransientError, match="after 1 of 3 bytes"):
        answer.text()
    server.fail("a.parquet", Fault(cut=1), Fault())
    assert fetch_text(Web(policy=QUICK), url, "it")[0] == "abc"


@pytest.mark.parametrize(
    ("status", "reported"),
    [
        (400, "cannot be had: .* 400"),
        (404, "is not there"),
        (403, "set HF_TOKEN"),
        (410, "not there"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(server, status, reported):
    server.fail("a.parquet", *[Fault(status)] * 9)
    with pytest.raises(WebError, match=reported):
        fetch_text(Web(policy=QUICK), f"{server.url}/plain/{REPO}/a.parquet", "it")
    assert len(server.asked) == 1


def test_a_password_in_an_address_is_refused():
    with pytest.raises(ConfigError, match="HF_ENDPOINT has a password in it") as reported:
        check_address("HF_ENDPOINT", "http://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(reported.value)
