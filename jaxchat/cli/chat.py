"""The command `jaxchat chat` (layer 5)."""

from __future__ import annotations

import argparse
import sys

from jaxchat import paths
from jaxchat.cli.args import positive, seed, temperature, whole
from jaxchat.cli.session import Sampling, load
from jaxchat.errors import ConfigError
from jaxchat.parallel.launch_env import start_jax
from jaxchat.progress import is_terminal
from jaxchat.runs import run_dir

PIPES = """\
Talks to a model. In a pipe each line is a question of its own and has one answer, whatever it
begins with; a line {"messages": [...]} is a conversation whose last message is answered. With
--continue the lines are one conversation, which was the default before November 28, 2026.
Commands, which begin with a slash, are for a terminal (/help). The exit code is 1 where some line
has no answer."""


TALKERS = ("mid", "sft", "rl")


def add_chat(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxchat chat`."""
    parser.description = PIPES
    parser.add_argument("--run", help="name of the run (default: the last with a model that talks)")
    parser.add_argument("--stage", choices=TALKERS, help="default: the last complete")
    parser.add_argument("-p", "--prompt", help="answer this and leave; - reads it from stdin")
    parser.add_argument("--system", default="", metavar="TEXT", help="stands before the messages")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=whole, default=0, help="sample among so many; 0: all")
    parser.add_argument("--max-tokens", type=positive, default=256, help="length of an answer")
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--json", action="store_true", help="an object a line for each answer")
    parser.add_argument(
        "--continue", action="store_true", dest="together",
        help="the lines of a pipe are one conversation",
    )  # fmt: skip
    parser.set_defaults(run_command=chat_command)


def _question(given: str) -> str:
    """What -p asks. Raises ConfigError where that is nothing."""
    from jaxchat.cli import piped

    question = piped.read_whole(sys.stdin) if given == "-" else given
    if not question.strip():
        where = "stdin" if given == "-" else "-p"
        raise ConfigError(f"the question that {where} gives is empty; say what is asked.")
    return question


def chat_command(args: argparse.Namespace) -> int:
    """Talks to a model: once with -p, else until the user leaves."""
    if args.together and args.prompt is not None:
        raise ConfigError("--continue is for the lines of a pipe; with -p there is one question.")
    if args.prompt is not None:
        args.prompt = _question(args.prompt)
    root = paths.home(args.home)
    run = run_dir.find(root, args.run, TALKERS if args.stage is None else (args.stage,))
    config = run_dir.read_config(run)  # says what is missing, before JAX starts
    if args.run is None and run != (last := run_dir.find(root, None)):
        told = f"jaxchat: the last run, {last.name}, has no model to talk to; this is {run.name}."
        print(told, file=sys.stderr, flush=True)
    start_jax(config.mesh, root / "xla")
    from rich.console import Console

    from jaxchat.cli import converse

    sampling = Sampling(args.temperature, args.top_k, args.max_tokens, args.seed)
    loaded = load(root, args.run, args.stage, sampling)
    loaded.chat.system = args.system
    console = Console()  # it knows terminals and NO_COLOR
    coloured = console.is_terminal and not console.no_color
    session = converse.Session(
        loaded,
        colours=converse.TERMINAL if coloured else converse.PLAIN,
        as_json=args.json,
        interactive=is_terminal(sys.stdin) and args.prompt is None,
        together=args.together,
    )
    size = f"{loaded.parameters:,} parameters, a context of {config.model.sequence_len} tokens"
    if session.interactive or (is_terminal(sys.stderr) and not args.json):
        session.tell(f"jaxchat: {loaded.described}; {size}.")
    if args.prompt is not None:
        return converse.answer_once(session, args.prompt)
    return converse.converse(session, root / "chat_history")
