"""`jaxchat chat`: talking to a model in the terminal, in a pipe, or once.

Commands, prompts and messages of several lines are for a terminal. A pipe is data: each of its
lines is answered. Nothing heavy is imported before the command runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxchat import paths
from jaxchat.cli.args import (
    Parser,
    min_p,
    positive,
    repetition_penalty,
    seed,
    temperature,
    whole,
)
from jaxchat.config.derive import count_params
from jaxchat.config.machine import garbage_kept
from jaxchat.config.numbers import TEMPERATURE, NumberError
from jaxchat.config.operations import WEIGHTS
from jaxchat.config.schema import CHAT_STAGES, RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.progress import is_terminal
from jaxchat.runs import run_dir
from jaxchat.signals import NOTICES, Interrupted, stop_requests

if TYPE_CHECKING:
    from jaxchat.cli.conversation import RunChat

DESCRIPTION = """\
Talks to a model. In a pipe each line is a question of its own and has one answer, whatever it
begins with; a line {"messages": [...]} is a conversation whose last message is answered. With
--continue the lines are one conversation, which was the default before November 28, 2026.
Commands, which begin with a slash, are for a terminal (/help). The exit code is 1 where some line
has no answer."""
SEPARATE_LINES = (
    "jaxchat: a pipe is data: each line is a question of its own, and so is one that begins with a "
    "slash; --continue makes the lines one conversation."
)
BLOCK = '"""'  # begins and ends a message of several lines
HISTORY_LINES = 1000


def add_chat(parser: Parser) -> None:
    """The options of `jaxchat chat`."""
    parser.description = DESCRIPTION
    parser.option("--run", text="name of the run (default: the last with a chat model)")
    parser.option("--stage", text="default: the last complete", choices=CHAT_STAGES[::-1])
    parser.option("-p --prompt", text="answer this and exit; - reads it from stdin")
    parser.option("--system", str, "TEXT", "stands before the messages", "")
    parser.option("--temperature", temperature, None, "0 is greedy", 0.0)
    parser.option("--top-k", whole, None, "sample among the k likeliest; 0: all", 0)
    parser.option(
        "--min-p", min_p, None, "sample only what is this share as likely as the likeliest", 0.0
    )
    text = "above 1: what the text has already becomes less likely"
    parser.option("--repetition-penalty", repetition_penalty, "R", text, 1.0)
    parser.option("--max-tokens", positive, None, "length of an answer", 256)
    parser.option("--seed", seed, default=0)
    text = "of large matrices: int8 reads a quarter of the bytes a token"
    parser.option("--weights", str, None, text, WEIGHTS[0], choices=WEIGHTS)
    parser.switch("--json", "an object a line for each answer")
    parser.switch("--continue", "the lines of a pipe are one conversation", dest="together")
    parser.set_defaults(run_command=chat_command)


def chat_command(args: argparse.Namespace) -> int:
    """Answers -p, or messages until the user leaves; the exit code."""
    if args.together and args.prompt is not None:
        raise ConfigError("--continue is for the lines of a pipe; with -p there is one question.")
    prompt = None if args.prompt is None else _question(args.prompt)
    root = paths.home(args.home)
    run = run_dir.find(root, args.run, CHAT_STAGES if args.stage is None else (args.stage,))
    config = run_dir.read_config(run)  # says what is missing, before JAX starts
    if args.run is None and run != (last := run_dir.find(root, None)):
        text = f"jaxchat: the last run, {last.name}, has no model to talk to; this is {run.name}."
        print(text, file=sys.stderr, flush=True)
    with garbage_kept():  # until the first answer, or the first message
        session = _open(args, root, config, once=prompt is not None)
        if prompt is not None:
            return answer_once(session, prompt)
    return converse(session, root / "chat_history")


def _open(args: argparse.Namespace, root: Path, config: RunConfig, *, once: bool) -> Session:
    """The session with a run's model, as the options want it."""
    start_jax(config.mesh, root / "xla", quiet=once)
    from rich.console import Console

    from jaxchat.cli.conversation import load
    from jaxchat.evals.chat import Sampling

    sampling = Sampling(
        args.max_tokens, 1, args.temperature, args.seed, args.top_k, args.min_p,
        args.repetition_penalty,
    )  # fmt: skip
    chat = load(root, args.run, args.stage, sampling, args.weights, once=once)
    chat.system = args.system
    console = Console()  # it knows terminals and NO_COLOR
    session = Session(
        chat,
        colours=TERMINAL if console.is_terminal and not console.no_color else PLAIN,
        as_json=args.json,
        interactive=is_terminal(sys.stdin) and not once,
        together=args.together,
    )
    if session.interactive or (is_terminal(sys.stderr) and not args.json):
        parameters = count_params(config.model)["total"]
        size = f"{parameters:,} parameters, a context of {config.model.sequence_len} tokens"
        session.notify(f"jaxchat: {chat.description}; {size}.")
    return session


def _question(given: str) -> str:
    """The question of -p. Raises ConfigError for an empty one."""
    from jaxchat.cli.conversation import read_whole

    question = read_whole(sys.stdin) if given == "-" else given
    if not question.strip():
        where = "stdin" if given == "-" else "-p"
        raise ConfigError(f"the question that {where} gives is empty; say what is asked.")
    return question


class Colours(NamedTuple):
    """Escape sequences around what is not the model's own words, or nothing."""

    tool: str = ""
    notice: str = ""
    plain: str = ""


PLAIN = Colours()
TERMINAL = Colours(tool="\x1b[36m", notice="\x1b[2m", plain="\x1b[0m")


@dataclass
class Session:
    """A conversation and its presentation."""

    chat: RunChat
    colours: Colours = PLAIN
    as_json: bool = False  # one object a line for each answer, and nothing else
    interactive: bool = False  # a person sits there, so there are prompts
    together: bool = False  # the lines of a pipe are one conversation
    failed: bool = False  # some message had no answer

    def notify(self, notice: str) -> None:
        """Prints something that is not the model's; a pipe carries nothing but answers."""
        out = self.interactive and not self.as_json and is_terminal(sys.stdout)
        stream = sys.stdout if out else sys.stderr
        colours = self.colours if is_terminal(stream) else PLAIN
        print(f"{colours.notice}{notice}{colours.plain}", file=stream, flush=True)

    def answer(self, text: str, line: int = 0) -> None:
        """Prints the answer to a message; `line` is its number in a pipe, from 1.

        A signal only ends the answer: raised in the engine, it would break the cache. Raises
        Interrupted afterwards where it was a scheduler's, or the session is not interactive.
        """
        from jaxchat.cli.conversation import MessageTooLongError
        from jaxchat.inference.transcript import Scribe

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
            assert self.chat.last is not None  # `ask` has just ended
            record = {"model": self.chat.name, "prompt": text, **self.chat.last.to_json()}
            _print_json(record, line)
        else:
            print(" (stopped)" if stop() and self.interactive else "", flush=True)
        if stop() in NOTICES or (stop() and not self.interactive):
            raise Interrupted(stop())

    def refuse(self, text: str, reason: str, line: int = 0) -> None:
        """Reports why a message has no answer; `line` is its number in a pipe, from 1."""
        self.failed = True
        if self.as_json:
            _print_json({"prompt": text, "error": reason}, line)
        elif self.interactive:
            self.notify(f"({reason})")
        else:
            where = f"line {line}: " if line else ""
            print(f"jaxchat: {where}{reason}", file=sys.stderr, flush=True)

    def handle_command(self, line: str) -> bool:
        """Runs a line that begins with a slash. False: to leave."""
        name, _, argument = line.partition(" ")
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            self.notify(f"(there is no command {name}; these are)\n{HELP}")
        elif command.run is None:
            return False
        else:
            self.notify(command.run(self, argument.strip()))
        return True

    def _print(self, text: str) -> None:
        if text and not self.as_json:
            print(text, end="", flush=True)


def _print_json(record: dict[str, object], line: int) -> None:
    record = {**record, **({"line": line} if line else {})}
    try:
        text = json.dumps(record, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half a character, as a command line that is no UTF-8 has it
        text = json.dumps(record)
    print(text, flush=True)


def answer_once(session: Session, prompt: str) -> int:
    """Prints the answer to one message; the exit code."""
    session.chat.notice = session.notify
    session.answer(prompt)
    return 2 if session.failed else 0


def converse(session: Session, history: Path | None = None) -> int:
    """Answers messages of the terminal, or each line of a pipe, until their end.

    The exit code: 1 where a line of a pipe has no answer.
    """
    session.chat.notice = session.notify
    if not session.interactive:
        return _answer_lines(session)
    with _line_editing(history):
        session.notify("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
        for text in _messages(session):
            if not text.startswith("/"):
                session.answer(text)
            elif not session.handle_command(text):
                break
    return 0


def _answer_lines(session: Session) -> int:
    """Answers each line of a pipe: alone, each with a seed of its own, or as one conversation."""
    from jaxchat.cli.conversation import read_lines

    chat, explained = session.chat, session.together
    seed, system = chat.sampling.seed, chat.system
    for count, line in enumerate(read_lines(sys.stdin)) if sys.stdin else ():
        if not explained and (count or line.text.startswith("/")):
            explained = True
            print(SEPARATE_LINES, file=sys.stderr, flush=True)
        if line.error:
            session.refuse(line.text, line.error, line.number)
            continue
        if not session.together:
            chat.forget()
            chat.sampling = replace(chat.sampling, seed=seed + count)
        if line.is_conversation:
            chat.system = line.system or system
            chat.begin(line.before)
        elif not session.together:
            chat.system = system
        session.answer(line.text, line.number)
    return 1 if session.failed else 0


def _messages(session: Session) -> Iterator[str]:
    """Typed messages that are not empty; Ctrl-C discards the one that is being typed."""
    while True:
        try:
            text = _read_message("\n> ").strip()
        except EOFError:
            session.notify("")
            return
        except KeyboardInterrupt:
            session.notify("")
            session.notify("(Ctrl-D or /quit leaves)")
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
    """A typed line; where the answers go into a file, the prompt doesn't."""
    if is_terminal(sys.stdout):
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


@contextlib.contextmanager
def _line_editing(history: Path | None) -> Iterator[None]:
    """Line editing for `input`, with earlier messages; only their owner may read that file."""
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


def _clear(session: Session, _: str) -> str:
    session.chat.forget()
    return "(a new conversation)"


def _system(session: Session, argument: str) -> str:
    system = session.chat.system = "" if argument == "off" else argument or session.chat.system
    return f"(the system message is: {system})" if system else "(there is no system message)"


def _temperature(session: Session, argument: str) -> str:
    chat = session.chat
    if argument:
        try:
            chat.sampling = replace(chat.sampling, temperature=TEMPERATURE.parse(argument))
        except NumberError as error:
            return f"({error})"
    value = chat.sampling.temperature
    return f"(the temperature is {value:g}{'' if value else ', so always the likeliest token'})"


def _save(session: Session, argument: str) -> str:
    """Appends, so that nothing is lost; the line is one that `[sft] epochs` can train on."""
    chat = session.chat
    if not chat.messages:
        return "(nothing was said yet)"
    path = Path(argument or "chat.jsonl").expanduser()
    system = [{"role": "system", "content": chat.system}] if chat.system else []
    line = json.dumps({"messages": [*system, *chat.messages]}, ensure_ascii=False)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        return f"({path} cannot be written: {error.strerror}; name another file)"
    return f"(the conversation is the last line of {path})"


def _stage(session: Session, argument: str) -> str:
    if argument:
        try:
            session.chat.switch(argument)
        except ArtifactError as error:
            return f"({error})"
    return f"(this is {session.chat.description})"


class Command(NamedTuple):
    """A command that begins with a slash."""

    argument: str
    help: str
    run: Callable[[Session, str], str] | None  # returns what it reports; None: to leave


COMMANDS = {
    "/help": Command("", "this list", lambda session, argument: HELP),
    "/clear": Command("", "forgets what was said (/new does, too)", _clear),
    "/system": Command("[TEXT]", "what stands before the first message; off: nothing", _system),
    "/temperature": Command("[T]", "0 is greedy, 1 samples as the model has it", _temperature),
    "/save": Command("[FILE]", "appends the conversation to FILE (chat.jsonl)", _save),
    "/stage": Command("[STAGE]", "continues with the model of mid, sft or rl", _stage),
    "/quit": Command("", "leaves", None),
}
ALIASES = {"/new": "/clear", "/?": "/help", "/exit": "/quit"}
HELP: str = "\n".join(
    [f"{name + ' ' + argument:<20} {text}" for name, (argument, text, _) in COMMANDS.items()]
    + [f"a line that ends in \\ continues in the next; {BLOCK} begins and ends several lines"]
)
