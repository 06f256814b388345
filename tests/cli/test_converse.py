"""The chat in the terminal: its commands, signals, pipes, and a real terminal."""

import contextlib
import fcntl
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

from jaxchat.cli.chat import HELP, PLAIN, SEPARATE_LINES, TERMINAL, Session, answer_once, converse
from jaxchat.cli.conversation import Chat, load
from jaxchat.cli.main import main
from jaxchat.evals.chat import Sampling
from jaxchat.inference.transcript import Scribe, as_text, printable
from jaxchat.signals import Interrupted
from jaxchat.tasks.conversations import Custom
from jaxchat.tokenizer import render_prompt

LONG = "x " * 200


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("talking")
    finish_run(root, tiny_config(), tiny_tokenizer())
    return root


@pytest.fixture(scope="module")
def chat(root):
    return load(root, None, None, Sampling(max_tokens=20))


@pytest.fixture
def session(chat):
    chat.forget()
    chat.system, chat.sampling = "", Sampling(max_tokens=20)
    chat.switch("rl")
    return Session(chat)


def expected(session, text):
    """What is printed for an answer."""
    chat = session.chat
    fresh = Chat(chat.engine, chat.tokenizer, chat.context, chat.sampling, system=chat.system)
    scribe = Scribe(session.colours.tool, session.colours.plain)
    return "".join(map(scribe.write, fresh.ask(text))) + scribe.close()


def piped(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def typed(monkeypatch, session, *lines):
    """Lines as a person types them, into a session of a terminal."""
    session.interactive = True
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def notices(capsys):
    """What a session of a terminal says beside the answers."""
    lines = capsys.readouterr().err.replace("\n> ", "\n").removeprefix("\n").splitlines()
    return [line for line in lines if line and not line.startswith("/help lists the commands")]


def questions(session):
    return [message["content"] for message in session.chat.messages[::2]]


def test_a_terminal_is_one_conversation_with_commands(session, monkeypatch, capsys):
    typed(monkeypatch, session, "who are you", "", "/new", "how many", "/quit", "no")
    assert converse(session) == 0
    assert notices(capsys) == ["(a new conversation)"]
    assert questions(session) == ["how many"]


QUESTIONS = ["What is 2 + 2?", "/quit is what command?", "/new", "Who are you?", 'one """two\\']


def test_every_line_of_a_pipe_is_a_question_of_its_own(session, monkeypatch, capsys):
    """Of these five the commands for a terminal took all but the first."""
    piped(monkeypatch, "".join(f"{line}\n" for line in QUESTIONS).encode())
    answers = [expected(session, text) for text in QUESTIONS]
    assert converse(session) == 0
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{answer}\n" for answer in answers)
    assert captured.err == SEPARATE_LINES + "\n"
    assert questions(session) == QUESTIONS[-1:]


def test_one_question_in_a_pipe_has_its_answer_and_nothing_else(session, monkeypatch, capsys):
    piped(monkeypatch, b"who are you")
    answer = expected(session, "who are you")
    assert converse(session) == 0
    assert capsys.readouterr() == (answer + "\n", "")


def test_the_lines_of_a_pipe_can_be_one_conversation(session, monkeypatch, capsys):
    session.together = True
    piped(monkeypatch, b"who are you\n/new\n/quit?")
    assert converse(session) == 0
    captured = capsys.readouterr()
    assert (questions(session), captured.err) == (["who are you", "/new", "/quit?"], "")


def json_answers(session, monkeypatch, capsys, data):
    session.as_json = True
    piped(monkeypatch, data)
    code = converse(session)
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "data",
    [
        b"one\ntwo\nthree\n",
        b"one\ntwo\nthree",
        b"one\r\ntwo\r\nthree\r\n",
        b"\xef\xbb\xbfone\n\n  \n\xef\xbb\xbftwo\n\tthree \n\n",
    ],
    ids=["lines", "no end", "CRLF", "byte order marks and empty lines"],
)
def test_a_line_of_a_pipe_is_its_text(session, monkeypatch, capsys, data):
    code, reported = json_answers(session, monkeypatch, capsys, data)
    assert (code, [one["prompt"] for one in reported]) == (0, ["one", "two", "three"])


def test_a_line_of_messages_is_a_conversation(session, monkeypatch, capsys):
    before = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "me"}]
    system = {"role": "system", "content": "be brief"}
    lines = [[*before, {"role": "user", "content": "are you"}]]
    lines += [[system, *lines[0]], [system, lines[0][-1]]]
    reported = "".join(json.dumps({"messages": messages}) + "\n" for messages in lines)
    code, answers = json_answers(session, monkeypatch, capsys, f"{reported}are you\n".encode())
    sizes = [
        len(render_prompt(messages, session.chat.tokenizer))
        for messages in [*lines, [{"role": "user", "content": "are you"}]]
    ]
    assert code == 0
    assert [one["prompt"] for one in answers] == ["are you"] * 4
    assert [one["prompt_tokens"] for one in answers] == sizes
    assert [one["line"] for one in answers] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"messages": [{"role": "user"', "no JSON"),
        (b'{"messages": 3}', "messages must be a list"),
        (b'{"messages": []}', "messages must be a list"),
        (b'{"messages": [{"role": "assistant", "content": "hi"}]}', "it must be 'user'"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", '
            b'"content": "b"}]}',
            "must be the user's",
        ),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        (b'{"messages": ' + b"[" * 100_000, "no JSON"),
        (b"caf\xe9", "not UTF-8"),
        (LONG.encode(), "Please shorten it"),
    ],
)
def test_a_bad_line_is_reported_and_the_others_are_answered(session, monkeypatch, capsys, bad, why):
    code, reported = json_answers(session, monkeypatch, capsys, b"one\n" + bad + b"\ntwo\n")
    assert code == 1
    assert ["error" in one for one in reported] == [False, True, False]
    assert why in reported[1]["error"]
    assert [one["line"] for one in reported] == [1, 2, 3]
    session.as_json = False
    piped(monkeypatch, bad)
    assert converse(session) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxchat: line 1: ")


@pytest.mark.parametrize("text", ['{"a": 1} is what type?', '{"prompt": "hi"}', "{x}", "[1, 2]"])
def test_other_json_in_a_pipe_is_a_question(session, monkeypatch, capsys, text):
    code, reported = json_answers(session, monkeypatch, capsys, text.encode())
    assert (code, reported[0]["prompt"]) == (0, text)


def test_a_line_beyond_all_contexts_is_not_held(session, monkeypatch, capsys):
    monkeypatch.setattr("jaxchat.cli.conversation.LONGEST", 8)
    code, reported = json_answers(session, monkeypatch, capsys, b"one\n" + b"x" * 100 + b"\ntwo")
    assert code == 1
    assert [one.get("prompt") for one in reported] == ["one", "", "two"]
    assert "longer than" in reported[1]["error"]


def test_lines_of_a_pipe_are_sampled_each_for_itself(session, monkeypatch, capsys):
    session.chat.sampling = Sampling(max_tokens=20, temperature=2.0, seed=2**32 - 1)
    _, reported = json_answers(session, monkeypatch, capsys, b"who\n" * 4)
    assert len({json.dumps(one["parts"]) for one in reported}) > 1


def test_a_message_may_have_several_lines(session, monkeypatch):
    typed(monkeypatch, session, "one\\", "two", '"""', "three", "", "four", '"""', '"""five"""')
    assert converse(session) == 0
    assert questions(session) == ["one\ntwo", "three\n\nfour", "five"]


def test_an_unknown_command_lists_those_there_are(session, monkeypatch, capsys):
    typed(monkeypatch, session, "/what", "/help")
    assert converse(session) == 0
    reported = notices(capsys)
    assert reported[0] == "(there is no command /what; these are)"
    assert "\n".join(reported).count(HELP) == 2
    assert session.chat.messages == []


def test_the_system_message_can_be_set_shown_and_taken_away(session, monkeypatch, capsys):
    typed(monkeypatch, session, "/system be brief", "/system", "/new", "/system off", "/system")
    assert converse(session) == 0
    reported = notices(capsys)
    assert reported[:2] == ["(the system message is: be brief)"] * 2
    assert reported[3:] == ["(there is no system message)"] * 2


def test_the_temperature_can_be_set(session, monkeypatch, capsys):
    typed(
        monkeypatch,
        session,
        "/temperature 0.5",
        "/temperature hot",
        "/temperature nan",
        "/temperature",
    )
    assert converse(session) == 0
    assert session.chat.sampling == Sampling(temperature=0.5, max_tokens=20)
    assert notices(capsys) == [
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
        monkeypatch, session, f"/save {file}", "who are you", "how many", f"/save {file}",
        "/system brief", f"/save {file}", f"/save {tmp_path}/no/such.jsonl",
    )  # fmt: skip
    assert converse(session) == 0
    out = "\n".join(notices(capsys))
    assert out.startswith("(nothing was said yet)\n")
    assert "such.jsonl cannot be written: No such file or directory; name another file)" in out
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["messages"] == session.chat.messages
    assert second["messages"] == [{"role": "system", "content": "brief"}, *first["messages"]]
    assert len(Custom([file])) == 2


def test_the_stage_can_be_changed(session, monkeypatch, capsys):
    typed(monkeypatch, session, "/stage sft", "/stage base", "/stage")
    assert converse(session) == 0
    reported = notices(capsys)
    assert (
        reported[0]
        == reported[2]
        == "(this is tiny/sft, the model of supervised fine-tuning; rl and mid with /stage)"
    )
    assert "has no model base (complete there: rl, sft, mid)" in reported[1]


def test_ctrl_c_stops_the_answer_and_not_the_program(session, monkeypatch, capsys):
    ask = Chat.ask

    def impatient(self, text):
        for number, piece in enumerate(ask(self, text)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Chat, "ask", impatient)
    session.chat.sampling = Sampling(max_tokens=60)
    typed(monkeypatch, session, "who are you")
    assert converse(session) == 0
    assert capsys.readouterr().out.endswith(" (stopped)\n")
    assert session.chat.last.finish_reason == "interrupted"
    assert len(session.chat.messages) == 2


def test_json_has_an_object_for_each_answer_and_nothing_else(session, monkeypatch, capsys):
    session.as_json = True
    piped(monkeypatch, f"who are you\n{LONG}\nhow many\n".encode())
    assert converse(session) == 1
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
        *("prompt_tokens", "completion_tokens", "line"),
    }
    assert long["prompt"] == LONG.strip()
    assert "Please shorten it" in long["error"]
    assert captured.err == SEPARATE_LINES + "\n"


def test_one_prompt_gives_the_answer_and_nothing_else(session, capsys):
    answer = expected(session, "who are you")
    assert answer_once(session, "who are you") == 0
    assert capsys.readouterr().out == answer + "\n"
    session.chat.forget()
    assert answer_once(session, LONG) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxchat: your message is ")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_command_answers_a_prompt_from_a_pipe(root, session, monkeypatch, capsys, mark):
    text = "who\nare you\n"
    piped(monkeypatch, mark + text.encode())
    arguments = ["chat", "--home", str(root), "--max-tokens", "20", "-p", "-", "--json"]
    assert main(arguments) == 0
    reported = json.loads(capsys.readouterr().out)
    assert (reported["prompt"], reported["model"]) == (text, "tiny/rl")
    assert printable(as_text(reported["parts"])) == expected(session, text)


@pytest.mark.parametrize(
    ("data", "options", "why"),
    [
        (b"caf\xe9", ["-p", "-"], "not UTF-8"),
        (b"", ["-p", "-"], "the question that stdin gives is empty"),
        (b"", ["-p", "  "], "the question that -p gives is empty"),
        (b"", ["-p", "hi", "--continue"], "--continue is for the lines of a pipe"),
    ],
)
def test_a_question_that_is_none_is_one_sentence(root, monkeypatch, capsys, data, options, why):
    piped(monkeypatch, data)
    assert main(["chat", "--home", str(root), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert why in err


def test_what_a_person_is_notified_of_does_not_get_into_the_answers(session, monkeypatch, capsys):
    """`jaxchat chat --json > file`, typed at a terminal: notices and prompts are not answers."""
    session.as_json, session.colours = True, TERMINAL
    typed(monkeypatch, session, "/help", "who are you", "/temperature")
    assert converse(session) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["who are you"]
    assert "\x1b" not in err


def test_a_signal_ends_a_pipe(session, monkeypatch, capsys):
    ask = Chat.ask

    def impatient(self, text):
        for piece in ask(self, text):
            os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Chat, "ask", impatient)
    piped(monkeypatch, b"one\ntwo\n")
    with pytest.raises(Interrupted) as caught:
        converse(session)
    assert caught.value.exit_code == 130
    assert questions(session) == ["one"]
    assert "(stopped)" not in capsys.readouterr().out


def test_calls_of_tools_are_painted_in_a_terminal(session, monkeypatch, capsys):
    calls = [{"type": "python", "text": ""}, {"type": "python", "text": "1+1"}]
    monkeypatch.setattr(Chat, "ask", lambda self, text: (piece for piece in calls))
    session.colours = TERMINAL
    answer_once(session, "1+1?")
    assert capsys.readouterr().out == "\x1b[36m[calculator: 1+1]\x1b[0m\n"
    assert PLAIN == ("", "", "")


class Terminal:
    """`jaxchat chat` in a terminal of its own."""

    def __init__(self, root, *, in_background):
        def prepare():
            fcntl.ioctl(theirs, 0x540E, 0)  # TIOCSCTTY
            if in_background:  # as a child of `nohup ... &`
                signal.signal(signal.SIGINT, signal.SIG_IGN)

        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxchat", "chat", "--home", str(root), "--max-tokens", "100"],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
            preexec_fn=prepare,
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

    def interrupt(self, reported):
        """Ctrl-C, until `reported` comes: Python misses one just before it waits for keys."""
        for _ in range(60):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.wait_for(reported, seconds=2)
        raise AssertionError(f"Ctrl-C did nothing; seen: {self.seen!r}")

    def type(self, text):
        os.write(self.ours, text.encode())


@pytest.mark.skipif(sys.platform != "linux", reason="a controlling terminal is set up as on Linux")
@pytest.mark.parametrize("in_background", [False, True])
def test_a_real_terminal_edits_lines_and_keeps_them(root, in_background):
    terminal = Terminal(root, in_background=in_background)
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
