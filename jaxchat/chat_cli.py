"""The command `jaxchat chat` (layer 5)."""

from __future__ import annotations

import argparse
import sys

from jaxchat import home, machine, runs
from jaxchat.arguments import not_negative, positive, whole


def add_chat(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxchat chat`."""
    parser.add_argument("--run", help="name of the run (default: the last)")
    parser.add_argument("--stage", choices=("mid", "sft", "rl"), help="default: the last complete")
    parser.add_argument("-p", "--prompt", help="answer this and leave; - reads it from stdin")
    parser.add_argument("--system", default="", metavar="TEXT", help="stands before the messages")
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0 is greedy")
    parser.add_argument("--top-k", type=whole, default=0, help="sample among so many; 0: all")
    parser.add_argument("--max-tokens", type=positive, default=256, help="length of an answer")
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--json", action="store_true", help="an object a line for each answer")
    parser.set_defaults(run_command=chat_command)


def chat_command(args: argparse.Namespace) -> int:
    """Talks to a model: once with -p, else until the user leaves."""
    root = home.home(args.home)
    config = runs.read_config(runs.find(root, args.run))  # says what is missing, before JAX starts
    machine.start_jax(config.mesh, root / "xla")
    from rich.console import Console

    from jaxchat import chat, converse

    sampling = chat.Sampling(args.temperature, args.top_k, args.max_tokens, args.seed)
    loaded = chat.load(root, args.run, args.stage, sampling)
    loaded.chat.system = args.system
    console = Console()  # it knows terminals and NO_COLOR
    coloured = console.is_terminal and not console.no_color
    session = converse.Session(
        loaded,
        colours=converse.TERMINAL if coloured else converse.PLAIN,
        as_json=args.json,
        interactive=sys.stdin.isatty() and args.prompt is None,
    )
    size = f"{loaded.parameters:,} parameters, a context of {config.model.sequence_len} tokens"
    if session.interactive or (sys.stderr.isatty() and not args.json):
        session.tell(f"jaxchat: {loaded.described}; {size}.")
    if args.prompt is not None:
        return converse.answer_once(
            session, sys.stdin.read() if args.prompt == "-" else args.prompt
        )
    return converse.converse(session, root / "chat_history")
