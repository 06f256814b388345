"""`jaxchat serve` as a process of its own: curl, signals, a port that is taken."""

import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from live_server import asking, wait_for

from jaxchat.serve.process import SIGNALS, Server

KEY = "a-key-of-some-length"


class Process:
    """The command, started; what it prints is read until it says where it is."""

    def __init__(self, home, *arguments, env=None):
        command = [sys.executable, "-m", "jaxchat", "serve", "--home", str(home), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--no-warm-up", *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert "open http://" in line, self.process.communicate()
        self.line = line
        self.url = line.partition("open ")[2].split()[0]

    def end(self, *signals):
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        out, self.err = self.process.communicate(timeout=60)
        del out
        return self.process.returncode


@pytest.fixture
def start(trained_home):
    started = []

    def begin(*arguments, **options):
        started.append(Process(trained_home, *arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.communicate()


def curl(*arguments):
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--retry", "60", "--retry-connrefused", "--retry-delay",
         "1", "--max-time", "120", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_curl_talks_to_the_command_and_a_signal_ends_it_in_order(start, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    server = start("--model", "tiny/rl", "--model", "tiny/sft", "--api-key-file",
                   str(tmp_path / "key"))  # fmt: skip
    assert "tiny/rl, tiny/sft: open http://127.0.0.1:" in server.line
    assert curl(f"{server.url}/ready") == '{"status":"ready"}'
    refused = json.loads(curl(f"{server.url}/v1/models"))
    assert refused["error"]["code"] == "invalid_api_key"
    bearer = ("-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json")
    body = {**asking("Who are you?"), "stream": True, "model": "tiny/rl"}
    stream = curl("-N", *bearer, "-d", json.dumps(body), f"{server.url}/v1/chat/completions")
    assert stream.endswith("data: [DONE]\n\n")
    assert KEY not in " ".join(server.process.args)
    assert server.end(signal.SIGINT) == 0
    assert "POST /v1/chat/completions 200 " in server.err
    assert "Traceback" not in server.err


def test_a_model_answers_to_the_names_it_is_given(start):
    server = start("--model", "tiny/rl=mychat", "--alias", "gpt-4o", "--any-name")
    assert "mychat: open http://" in server.line
    with httpx.Client(trust_env=False, timeout=120) as client:
        assert [m["id"] for m in client.get(f"{server.url}/v1/models").json()["data"]] == ["mychat"]
        for name in ("mychat", "gpt-4o", "tiny/rl", "whatever"):
            body = asking("Who are you?", model=name, max_tokens=1)
            got = client.post(f"{server.url}/chat/completions", json=body)
            assert (got.status_code, got.json()["model"]) == (200, "mychat")


def open_stream(client, server):
    """A long answer that has begun."""
    body = {**asking("Count.", n=8, temperature=1.5, ignore_eos=True), "stream": True}
    request = client.build_request("POST", f"{server.url}/v1/chat/completions", json=body)
    answer = client.send(request, stream=True)
    lines = answer.iter_lines()
    next(lines)
    return answer, lines


def test_a_signal_amid_a_stream_lets_it_end_and_refuses_others(start):
    server = start("--grace-seconds", "60", "--slots", "1")
    with httpx.Client(trust_env=False, timeout=120) as client:
        _, lines = open_stream(client, server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get(f"{server.url}/ready").status_code == 503, "it is closing")
        refused = client.post(f"{server.url}/v1/chat/completions", json=asking("Count."))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.end() == 0


def test_what_outlasts_the_grace_ends_with_an_error(start):
    server = start("--grace-seconds", "0", "--slots", "1")
    with httpx.Client(trust_env=False, timeout=120) as client:
        _, lines = open_stream(client, server)
        server.process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert server.end() == 0


def test_a_second_signal_ends_it_at_once(start):
    server = start("--grace-seconds", "600", "--slots", "1")
    with httpx.Client(trust_env=False, timeout=120) as client:
        open_stream(client, server)
        assert server.end(signal.SIGTERM, signal.SIGTERM) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["--run", "none"], "there is no run 'none'", 1),
        (["--stage", "mid", "--model", "tiny/rl"], "name all models by --model", 2),
        (["--model", "a/b/c"], "must be of the form RUN/STAGE", 2),
        (["--model", "tiny/rl="], "or with =NAME behind it", 2),
        (["--model", "tiny/rl", "--model", "tiny/sft", "--any-name"], "is for one model", 2),
        (["--host", "0.0.0.0"], "--no-key if everyone may", 2),
        (["--host", "no.such.host.invalid", "--no-key"], "is no address of this machine", 2),
        (["--host", ""], "serve.host is ''; it must be an address", 2),
        (["--allow-origin", "example.org"], "of the form https://example.org", 2),
        (["--api-key-file", "/no/such/file"], "cannot be read (No such file", 2),
    ],
)
def test_a_wrong_argument_is_reported_in_one_sentence(
    trained_home, capsys, arguments, sentence, code
):
    from jaxchat.cli.main import main

    assert main(["serve", "--home", str(trained_home), *arguments]) == code
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.startswith("jaxchat: ")
    assert printed.count("\n") == 1


def test_a_port_in_use_and_a_short_key_are_reported(trained_home, capsys, monkeypatch):
    from jaxchat.cli.main import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--home", str(trained_home), "--port", port]) == 2
    assert "is in use by another program" in capsys.readouterr().err
    monkeypatch.setenv("JAXCHAT_API_KEY", "short")
    assert main(["serve", "--home", str(trained_home)]) == 2
    assert "openssl rand -hex 32" in capsys.readouterr().err


@pytest.mark.parametrize("signals", [0, 1])
def test_signals_remain_handled_while_a_server_ends(signals):
    """The default would end a process that is ending by itself, with another exit code."""
    server = Server.__new__(Server)
    server._signals = 0
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with server.capture_signals():
            server._signals = signals
        handled = signal.getsignal(signal.SIGTERM) == server.handle_exit
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert handled == bool(signals)
