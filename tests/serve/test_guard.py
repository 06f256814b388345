"""Keys, hosts, sizes and headers; and clients that mean no good."""

import re
import socket
import time

import httpx
import pytest
from live_server import asking, serve

from jaxchat.config.operations import ServeConfig
from jaxchat.serve.guard import CSP, allowed_hosts

KEY = "a-key-of-some-length"
ORIGIN = "https://friend.example"


@pytest.fixture(scope="module")
def guarded(models):
    """A server with a key, small limits, and a friend."""
    with serve(
        models[:1], key=KEY, body_bytes=2000, body_seconds=2.0, characters=500, origins=(ORIGIN,),
        hosts=("proxy.example",),
    ) as server:  # fmt: skip
        yield server


def error_of(answer):
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/metrics", "/v1/none", "/models", "/tokenizer_info"]
)
@pytest.mark.parametrize(
    "header", [None, "Bearer another", f"Basic {KEY}", KEY, "Bearer", f"Bearer {KEY}x", "Bearer ä"]
)
def test_only_who_has_the_key_may_ask(guarded, path, header):
    headers = {} if header is None else {"authorization": header.encode()}
    answer = guarded.get(path, headers=headers)
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_key_opens_what_it_should(guarded):
    headers = {"authorization": f"Bearer {KEY}"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    assert guarded.get("/metrics", headers=headers).status_code == 200
    body = asking("Who are you?", max_tokens=1)
    assert guarded.post("/v1/chat/completions", body).status_code == 401
    assert guarded.post("/v1/chat/completions", body, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json"])
def test_some_paths_need_no_key(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:99", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("proxy.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_not_ours_is_refused(guarded, host, status):
    answer = guarded.get("/health", headers={"host": host})
    assert answer.status_code == status
    if status == 403:
        assert error_of(answer)["code"] == "host_not_allowed"


def test_hosts_are_looked_at_on_this_machine_or_where_they_are_named():
    assert allowed_hosts(ServeConfig(host="0.0.0.0")) is None
    assert allowed_hosts(ServeConfig(hosts=("*",))) is None
    assert "chat.example" in (allowed_hosts(ServeConfig(hosts=("Chat.example",))) or ())


@pytest.mark.parametrize("path", ["/health", "/none", "/", "/v1/models"])
def test_every_answer_has_the_headers_of_a_careful_server(guarded, path):
    headers = guarded.get(path).headers
    assert headers["content-security-policy"] == CSP
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


def test_a_harmless_request_id_is_returned(guarded):
    assert guarded.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == (
        "mine-1"
    )
    for name in ("a b", "x" * 200, '"><script>', ""):
        got = guarded.get("/health", headers={"x-request-id": name}).headers["x-request-id"]
        assert got.startswith("req_")


def test_only_named_sites_may_ask_from_their_pages(guarded, live_server):
    asks = {"origin": ORIGIN, "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type"}  # fmt: skip
    with httpx.Client(trust_env=False) as client:
        url = f"{guarded.api}/chat/completions"
        friend = client.options(url, headers=asks)
        stranger = client.options(url, headers={**asks, "origin": "https://evil.example"})
        off = client.options(f"{live_server.api}/chat/completions", headers=asks)
    assert friend.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in friend.headers
    assert "access-control-allow-origin" not in stranger.headers
    assert "access-control-allow-origin" not in off.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/none", 404), ("POST", "/health", 405), ("GET", "/v1/chat/completions", 405),
     ("GET", "/assets/../../config.py", 404), ("GET", "/assets/%2e%2e/%2e%2e/app.py", 404)],
)  # fmt: skip
def test_errors_have_one_shape(live_server, method, path, status):
    with httpx.Client(trust_env=False) as client:
        answer = client.request(method, f"{live_server.url}{path}")
    assert answer.status_code == status
    assert error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"null", "application/json"),
        (b"[]", "application/json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
         "application/json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b"[" * 30_000, "application/json"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "text/plain"),
        (b"a=b", "application/x-www-form-urlencoded"),
        (b"", "application/json"),
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_a_bad_request(live_server, content, kind):
    with httpx.Client(trust_env=False) as client:
        url = f"{live_server.api}/chat/completions"
        answer = client.post(url, content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"


def test_bodies_are_bounded_with_a_length_and_without(guarded):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = f"{guarded.api}/chat/completions"
    with httpx.Client(trust_env=False) as client:
        for content in (b" " * 2001, iter([b" " * 500] * 5)):
            answer = client.post(url, content=content, headers=headers)
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "body_too_large"
        answer = client.post(url, json=asking("x" * 501), headers=headers)
    assert "501 characters; at most 500" in error_of(answer)["message"]


def dial(server, data):
    """A raw connection on which something has been sent."""
    port = int(server.url.rpartition(":")[2])
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(data)
    return sock


def read_all(sock):
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    sock.close()
    return data


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\n"
)


def test_a_body_that_does_not_come_in_time_is_given_up(guarded):
    sock = dial(guarded, HEAD + b"content-length: 100\r\n\r\n{")
    start = time.monotonic()
    for _ in range(3):
        time.sleep(0.1)
        sock.sendall(b" ")  # slowly is not in time either
    found = read_all(sock)
    assert b" 408 " in found.partition(b"\r\n")[0]
    assert b"body_too_slow" in found
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET / HTTP/9.9\r\nconnection: close\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: "
        + b"y" * 100_000
        + b"\r\n\r\n",
        b"POST /v1/count HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/count HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_garbage_is_refused_without_harm(guarded, data):
    answer = read_all(dial(guarded, data))
    assert re.match(rb"HTTP/1.1 4\d\d ", answer) or answer == b""
    assert guarded.get("/health").status_code == 200


def test_a_client_that_leaves_amid_a_body_does_no_harm(guarded):
    dial(guarded, HEAD + b"content-length: 100\r\n\r\n{").close()
    dial(guarded, HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{").close()
    assert guarded.get("/health").json()["status"] == "ok"
    assert (
        'status="500"'
        not in guarded.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    )


def test_conversations_are_not_logged(live_server, caplog):
    with caplog.at_level("DEBUG", logger="jaxchat"):
        live_server.ask("Who are you?")
        live_server.ask("x " * 2000)
    found = [record.getMessage() for record in caplog.records]
    assert any(
        re.fullmatch(r"POST /v1/chat/completions 200 \d+ ms req_\w+", line) for line in found
    )
    assert not any(
        "Who are" in line or "jaxchat, a very" in line or "x x" in line for line in found
    )
