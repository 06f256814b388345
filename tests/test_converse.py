"""The chat in the terminal: its commands, signals, pipes, and a real terminal."""

import contextlib
import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from finished_run import finish_run, tiny_config, tiny_tokenizer

from jaxchat import chat, converse
from jaxchat.chat import Chat, Sampling
from jaxchat.cli import main
from jaxchat.converse import HELP, PLAIN, TERMINAL, Session
from jaxchat.infer.transcript import Scribe, as_text, printable
from jaxchat.tasks.custom import Custom

LONG = "x " * 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("talking")
    finish_run(root, tiny_config(), tiny_tokenizer())
    return root


@pytest.fixture(scope="module")
def loaded(root):
    return chat.load(root, None, None, Sampling(max_tokens=20))


@pytest.fixture
def session(loaded):
    loaded.chat.forget()
    loaded.chat.system, loaded.chat.sampling = "", Sampling(max_tokens=20)
    return Session(loaded.switched("rl"))


def expected(session, text):
    """What is printed for an answer."""
    chat = session.chat
    fresh = Chat(chat.engine, chat.tokenizer, chat.context, chat.sampling, system=chat.system)
    scribe = Scribe(session.colours.tool, session.colours.plain)
    return scribe.write_all(list(fresh.ask(text))) + scribe.close()


def typed(monkeypatch, *lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def questions(session):
    return [message["content"] for message in session.chat.messages[::2]]


def test_a_pipe_is_answered_line_by_line(session, monkeypatch, capsys):
    typed(monkeypatch, "who are you", "", "/new", "how many", "/quit", "no")
    answers = [expected(session, text) for text in ("who are you", "how many")]
    assert converse.converse(session) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{answers[0]}\n{answers[1]}\n"
    assert captured.err == "(a new conversation)\n"
    assert questions(session) == ["how many"]


def test_a_message_may_have_several_lines(session, monkeypatch):
    typed(monkeypatch, "one\\", "two", '"""', "three", "", "four", '"""', '"""five"""')
    assert converse.converse(session) == 0
    assert questions(session) == ["one\ntwo", "three\n\nfour", "five"]


def test_an_unknown_command_lists_those_there_are(session, monkeypatch, capsys):
    typed(monkeypatch, "/what", "/help")
    assert converse.converse(session) == 0
    out = capsys.readouterr().err
    assert out.startswith("(there is no command /what; these are)\n")
    assert out.count(HELP) == 2
    assert session.chat.messages == []


def test_the_system_message_can_be_set_shown_and_taken_away(session, monkeypatch, capsys):
    typed(monkeypatch, "/system be brief", "/system", "/new", "/system off", "/system")
    assert converse.converse(session) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[:2] == ["(the system message is: be brief)"] * 2
    assert told[3:] == ["(there is no system message)"] * 2


def test_the_temperature_can_be_set(session, monkeypatch, capsys):
    typed(monkeypatch, "/temperature 0.5", "/temperature hot", "/temperature nan", "/temperature")
    assert converse.converse(session) == 0
    assert session.chat.sampling == Sampling(temperature=0.5, max_tokens=20)
    assert capsys.readouterr().err.splitlines() == [
        "(the temperature is 0.5)",
        "('hot' is not a number from 0 to 10)",
        "('nan' is not a number from 0 to 10)",
        "(the temperature is 0.5)",
    ]


def test_what_is_saved_can_be_trained_on_and_nothing_is_lost(
    session, monkeypatch, capsys, tmp_path
):
    file = tmp_path / "mine.jsonl"
    typed(
        monkeypatch, f"/save {file}", "who are you", "how many", f"/save {file}", "/system brief",
        f"/save {file}", f"/save {tmp_path}/no/such.jsonl",
    )  # fmt: skip
    assert converse.converse(session) == 0
    out = capsys.readouterr().err
    assert out.startswith("(nothing was said yet)\n")
    assert "such.jsonl cannot be written: No such file or directory; name another file)" in out
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["messages"] == session.chat.messages
    assert second["messages"] == [{"role": "system", "content": "brief"}, *first["messages"]]
    assert len(Custom([file])) == 2


def test_the_stage_can_be_changed(session, monkeypatch, capsys):
    typed(monkeypatch, "/stage sft", "/stage base", "/stage")
    assert converse.converse(session) == 0
    told = capsys.readouterr().err.splitlines()
    assert (
        told[0]
        == told[2]
        == "(this is tiny/sft, the model of supervised fine-tuning; rl and mid with /stage)"
    )
    assert "has no model base (complete there: rl, sft, mid)" in told[1]


def test_ctrl_c_stops_the_answer_and_not_the_program(session, monkeypatch, capsys):
    ask = Chat.ask

    def impatient(self, text):
        for number, piece in enumerate(ask(self, text)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Chat, "ask", impatient)
    session.chat.sampling = Sampling(max_tokens=60)
    typed(monkeypatch, "who are you")
    assert converse.converse(session) == 0
    assert capsys.readouterr().out.endswith(" (stopped)\n")
    assert session.chat.last.finish_reason == "interrupted"
    assert len(session.chat.messages) == 2


def test_json_has_an_object_for_each_answer_and_nothing_else(session, monkeypatch, capsys):
    session.as_json = True
    typed(monkeypatch, "who are you", "/new", LONG, "how many")
    assert converse.converse(session) == 2
    captured = capsys.readouterr()
    first, long, second = map(json.loads, captured.out.splitlines())
    assert (first["model"], first["prompt"], second["prompt"]) == (
        *("tiny/rl", "who are you", "how many"),
    )
    assert printable(as_text(second["parts"])) == as_text(second["parts"])
    assert second["parts"] == list(session.chat.last.parts)
    assert second["content"] == session.chat.last.text
    assert set(second) == {
        *("model", "prompt", "content", "parts", "finish_reason", "seconds"),
        *("prompt_tokens", "completion_tokens"),
    }
    assert long["prompt"] == LONG.strip()
    assert "Please shorten it" in long["error"]
    assert "(a new conversation)" in captured.err


def test_one_prompt_gives_the_answer_and_nothing_else(session, capsys):
    answer = expected(session, "who are you")
    assert converse.answer_once(session, "who are you") == 0
    assert capsys.readouterr().out == answer + "\n"
    session.chat.forget()
    assert converse.answer_once(session, LONG) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxchat: your message is ")


def test_the_command_answers_a_prompt_from_a_pipe(root, session, monkeypatch, capsys):
    text = "who\nare you\n"
    typed(monkeypatch, *text.splitlines())
    arguments = ["chat", "--home", str(root), "--max-tokens", "20", "-p", "-", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["prompt"], told["model"]) == (text, "tiny/rl")
    assert printable(as_text(told["parts"])) == expected(session, text)


def test_calls_of_tools_are_painted_in_a_terminal(session, monkeypatch, capsys):
    calls = [{"type": "python", "text": ""}, {"type": "python", "text": "1+1"}]
    monkeypatch.setattr(Chat, "ask", lambda self, text: (piece for piece in calls))
    session.colours = TERMINAL
    converse.answer_once(session, "1+1?")
    assert capsys.readouterr().out == "\x1b[36m[calculator: 1+1]\x1b[0m\n"
    assert PLAIN == ("", "", "")


class Terminal:
    """`jaxchat chat` in a terminal of its own."""

    def __init__(self, root):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxchat", "chat", "--home", str(root), "--max-tokens", "100"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
            preexec_fn=lambda: __import__("fcntl").ioctl(theirs, 0x540E, 0),  # TIOCSCTTY
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text, seconds=120):
        """Reads until `text` has come after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.ours], [], [], 1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.ours, 65536).decode(errors="replace")
        before, self.seen = self.seen.split(text, 1)
        return before

    def interrupt(self, told):
        """Ctrl-C, until `told` comes: Python misses one in the instant before it waits for keys."""
        for _ in range(60):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.wait_for(told, seconds=2)
        raise AssertionError(f"Ctrl-C did nothing; seen: {self.seen!r}")

    def type(self, text):
        os.write(self.ours, text.encode())


@pytest.mark.skipif(sys.platform != "linux", reason="a controlling terminal is set up as on Linux")
def test_a_real_terminal_edits_lines_and_keeps_them(root):
    terminal = Terminal(root)
    try:
        greeting = terminal.wait_for("> ")
        assert "jaxchat: tiny/rl, the model of reinforcement learning" in greeting
        assert "sft and mid with /stage" in greeting.replace("\r\n", "")
        terminal.type("half a mess")
        terminal.wait_for("half a mess")
        terminal.interrupt("(Ctrl-D or /quit leaves)")  # which throws the line away
        terminal.wait_for("> ")
        terminal.type("/temprature\x1b[D\x1b[D\x1b[D\x1b[D\x1b[De 1\x01\r")  # Ctrl-A: to its start
        terminal.wait_for("there is no command")
        terminal.wait_for("> ")
        terminal.type("who are you\r")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.ours)
    history = root / "chat_history"
    assert "who are you" in history.read_text().splitlines()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
