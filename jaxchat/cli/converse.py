"""Talking in the terminal, in a pipe, or once (layer 4).

What is for a person holds in a terminal only: commands, prompts, messages of several lines. A pipe
is data: each of its lines is answered (`piped`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jaxchat.cli.piped import Line, read_lines
from jaxchat.cli.session import Chat, Loaded, MessageTooLongError
from jaxchat.config.numbers import TEMPERATURE, NumberError
from jaxchat.errors import ArtifactError
from jaxchat.inference.transcript import Scribe
from jaxchat.progress import is_terminal
from jaxchat.signals import NOTICES, Interrupted, stop_requests

BLOCK = '"""'  # begins and ends a message of several lines
HISTORY_LINES = 1000
APART = (
    "jaxchat: a pipe is data: each line is a question of its own, and so is one that begins with a "
    "slash; --continue makes the lines one conversation."
)


class Colours(NamedTuple):
    """Escape sequences around what is not the model's own words, or nothing."""

    tool: str = ""
    notice: str = ""
    plain: str = ""


PLAIN = Colours()
TERMINAL = Colours(tool="\x1b[36m", notice="\x1b[2m", plain="\x1b[0m")


@dataclass
class Session:
    """A conversation and how it is shown.

    Attributes:
        as_json: one object a line for each answer, and nothing else.
        interactive: a person sits there, so there are prompts.
        together: the lines of a pipe are one conversation.
    """

    loaded: Loaded
    colours: Colours = PLAIN
    as_json: bool = False
    interactive: bool = False
    together: bool = False
    failed: bool = False  # some message had no answer

    @property
    def chat(self) -> Chat:
        """What was said."""
        return self.loaded.chat

    def tell(self, notice: str) -> None:
        """Says something that is not the model's; a pipe carries nothing but answers."""
        out = self.interactive and not self.as_json and is_terminal(sys.stdout)
        stream = sys.stdout if out else sys.stderr
        colours = self.colours if is_terminal(stream) else PLAIN
        print(f"{colours.notice}{notice}{colours.plain}", file=stream, flush=True)

    def answer(self, text: str, line: int = 0) -> None:
        """Prints the answer to a message, of the line of a pipe where there is one.

        A signal only ends the answer: raised in the engine, it would break the cache. Raises
        Interrupted afterwards where it was a scheduler's, or nobody sits there to go on.
        """
        with stop_requests() as stop, contextlib.closing(self.chat.ask(text)) as pieces:
            scribe = Scribe(self.colours.tool, self.colours.plain)
            try:
                for piece in pieces:
                    self._print(scribe.write(piece))
                    if stop():
                        break
                self._print(scribe.close())
            except MessageTooLongError as error:
                self.refuse(text, str(error), line)
                return
        if self.as_json:
            self._print_json({**self._record(text), **({"line": line} if line else {})})
        else:
            print(" (stopped)" if stop() and self.interactive else "", flush=True)
        if stop() in NOTICES or (stop() and not self.interactive):
            raise Interrupted(stop())

    def refuse(self, text: str, reason: str, line: int = 0) -> None:
        """Says why a message, of the line of a pipe where there is one, has no answer."""
        self.failed = True
        if self.as_json:
            self._print_json({"prompt": text, "error": reason, **({"line": line} if line else {})})
        elif self.interactive:
            self.tell(f"({reason})")
        else:
            where = f"line {line}: " if line else ""
            print(f"jaxchat: {where}{reason}", file=sys.stderr, flush=True)

    def obey(self, line: str) -> bool:
        """Does what a line that begins with a slash asks for. False: to leave."""
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            self.tell(f"(there is no command {name}; these are)\n{HELP}")
            return True
        return command.run(self, argument.strip()) is not False

    def _print(self, text: str) -> None:
        if text and not self.as_json:
            print(text, end="", flush=True)

    def _print_json(self, record: dict[str, object]) -> None:
        try:
            text = json.dumps(record, ensure_ascii=False)
            text.encode()
        except UnicodeEncodeError:  # half a character, as a command line that is no UTF-8 has it
            text = json.dumps(record)
        print(text, flush=True)

    def _record(self, text: str) -> dict[str, object]:
        last = self.chat.last
        assert last is not None  # `ask` has just ended
        return {
            "model": self.loaded.name,
            "prompt": text,
            "content": last.text,
            "parts": list(last.parts),
            "finish_reason": last.finish_reason,
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
            "seconds": round(last.seconds, 3),
        }


def converse(session: Session, history: Path | None = None) -> int:
    """Answers messages of the terminal, or a line each of a pipe, until their end.

    The exit code: 1 where a line of a pipe has no answer.
    """
    session.chat.notice = session.tell
    if not session.interactive:
        return _answer_lines(session)
    with _line_editing(history):
        session.tell("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        for text in _messages(session):
            if not text.startswith("/"):
                session.answer(text)
            elif not session.obey(text):
                break
    return 0


def _answer_lines(session: Session) -> int:
    """Answers each line of a pipe: alone, each with a seed of its own, or as one conversation."""
    chat, told = session.chat, session.together
    seed, system = chat.sampling.seed, chat.system
    for count, line in enumerate(read_lines(sys.stdin)) if sys.stdin else ():
        if not told and (count or line.text.startswith("/")):
            told = True
            print(APART, file=sys.stderr, flush=True)
        if line.error:
            session.refuse(line.text, line.error, line.number)
            continue
        if not session.together:
            chat.forget()
            chat.sampling = replace(chat.sampling, seed=seed + count)
        if line.is_conversation:
            chat.system = _system_of(line) or system
            chat.begin(line.before)
        elif not session.together:
            chat.system = system
        session.answer(line.text, line.number)
    return 1 if session.failed else 0


def _system_of(line: Line) -> str:
    """The system message of a conversation; "": it has none."""
    first = line.before[0] if line.before else None
    return str(first["content"]) if first and first["role"] == "system" else ""


def answer_once(session: Session, prompt: str) -> int:
    """Prints the answer to one message; the exit code."""
    session.chat.notice = session.tell
    session.answer(prompt)
    return 2 if session.failed else 0


def _messages(session: Session) -> Iterator[str]:
    """What is typed, without empty messages; Ctrl-C throws away what was typed so far."""
    while True:
        try:
            text = _read_message("\n> ").strip()
        except EOFError:
            session.tell("")
            return
        except KeyboardInterrupt:
            session.tell("")
            session.tell("(Ctrl-D or /quit leaves)")
            continue
        if text:
            yield text


def _read_message(prompt: str) -> str:
    r"""One message: a line, lines that end in \ and the one after, or a block of lines."""
    more = "... "
    line = _input(prompt)
    if not line.lstrip().startswith(BLOCK):
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = _input(more)
        return "\n".join([*lines, line])
    lines, line = [], line.lstrip().removeprefix(BLOCK)
    while not line.rstrip().endswith(BLOCK):
        lines.append(line)
        line = _input(more)
    return "\n".join([*lines, line.rstrip().removesuffix(BLOCK)])


def _input(prompt: str) -> str:
    """A line that is typed; where the answers go into a file, the prompt doesn't."""
    if is_terminal(sys.stdout):
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


@contextlib.contextmanager
def _line_editing(history: Path | None) -> Iterator[None]:
    """Line editing for `input`, with what was typed earlier; only its owner may read that file."""
    import readline  # its import is what gives `input` line editing

    if history is None:
        yield
        return
    with contextlib.suppress(OSError):  # there is none yet, or it cannot be read
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        with contextlib.suppress(OSError):  # not worth an error when one leaves
            os.close(os.open(history, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(history)


def _help(session: Session, argument: str) -> None:
    del argument
    session.tell(HELP)


def _clear(session: Session, argument: str) -> None:
    del argument
    session.chat.forget()
    session.tell("(a new conversation)")


def _system(session: Session, argument: str) -> None:
    session.chat.system = "" if argument == "off" else argument or session.chat.system
    told = session.chat.system
    session.tell(f"(the system message is: {told})" if told else "(there is no system message)")


def _temperature(session: Session, argument: str) -> None:
    sampling = session.chat.sampling
    if argument:
        try:
            value = TEMPERATURE.parse(argument)
        except NumberError as error:
            session.tell(f"({error})")
            return
        session.chat.sampling = sampling = replace(sampling, temperature=value)
    greedy = ", so always the likeliest token" if sampling.temperature == 0 else ""
    session.tell(f"(the temperature is {sampling.temperature:g}{greedy})")


def _save(session: Session, argument: str) -> None:
    """Appends, so that nothing is lost; the line is one that `[sft] epochs` can train on."""
    if not session.chat.messages:
        session.tell("(nothing was said yet)")
        return
    path = Path(argument or "chat.jsonl").expanduser()
    system = [{"role": "system", "content": session.chat.system}] if session.chat.system else []
    line = json.dumps({"messages": [*system, *session.chat.messages]}, ensure_ascii=False)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        session.tell(f"({path} cannot be written: {error.strerror}; name another file)")
        return
    session.tell(f"(the conversation is the last line of {path})")


def _stage(session: Session, argument: str) -> None:
    if argument:
        try:
            session.loaded = session.loaded.switched(argument)
        except ArtifactError as error:
            session.tell(f"({error})")
            return
    session.tell(f"(this is {session.loaded.described})")


def _quit(session: Session, argument: str) -> bool:
    del session, argument
    return False


class Command(NamedTuple):
    """What a line that begins with a slash may ask for."""

    argument: str
    told: str
    run: Callable[[Session, str], bool | None]  # False: to leave


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/clear": Command("", "forgets what was said (/new does, too)", _clear),
    "/system": Command("[TEXT]", "what stands before the first message; off: nothing", _system),
    "/temperature": Command("[T]", "0 is greedy, 1 samples as the model has it", _temperature),
    "/save": Command("[FILE]", "appends the conversation to FILE (chat.jsonl)", _save),
    "/stage": Command("[STAGE]", "goes on with the model of mid, sft or rl", _stage),
    "/quit": Command("", "leaves", _quit),
}
ALIASES = {"/new": "/clear", "/?": "/help", "/exit": "/quit"}
HELP = "\n".join(
    [f"{name + ' ' + argument:<20} {told}" for name, (argument, told, _) in COMMANDS.items()]
    + [f"a line that ends in \\ goes on in the next; {BLOCK} begins and ends several lines"]
)
