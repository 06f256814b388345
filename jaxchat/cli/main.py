"""The `jaxchat` command. Nothing heavy is imported before the arguments are read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jaxchat
from jaxchat import paths
from jaxchat.cli import (
    bench,
    chat,
    data,
    doctor,
    eval,
    ladder,
    models,
    report,
    runs,
    serve,
    tokenizer,
)
from jaxchat.cli.args import Parser, positive, whole
from jaxchat.errors import EXIT_CODES, ErrorHandler


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (see `errors`)."""
    args = parse(argv)
    with ErrorHandler(paths.home(args.home)) as handler:
        handler.exit_code = args.run_command(args)
    return handler.exit_code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; exits with 2 for bad ones and 0 after --help."""
    parser = Parser(
        "jaxchat", description="Talk to what run_speedrun.py trained.", epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"jaxchat {jaxchat.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    chat.add_chat(commands.add_parser("chat", help="talk to a model"))
    runs.add_runs(commands.add_parser("runs", help="list the runs"))
    runs.add_watch(commands.add_parser("watch", help="see a run at work"))
    serve.add_serve(commands.add_parser("serve", help="serve models to browsers and programs"))
    report.add_report(
        commands.add_parser(
            "report", help="make a run's report of what there is of it, or compare two"
        )
    )
    _add_profile(commands.add_parser("profile", help="say where time went"))
    tokenizer.add_commands(commands.add_parser("tokenizer", help="train and compare tokenizers"))
    data.add_commands(commands.add_parser("data", help="download and prepare datasets"))
    eval.add_commands(commands.add_parser("eval", help="measure models"))
    ladder.add_commands(
        commands.add_parser("ladder", help="train depths with one recipe, and compare recipes")
    )
    models.add_export(
        commands.add_parser("export", help="write a model for transformers, or to import elsewhere")
    )
    models.add_import(commands.add_parser("import", help="make a run of a model from elsewhere"))
    bench.add_commands(commands.add_parser("bench", help="measure speed"))
    doctor.add_doctor(commands.add_parser("doctor", help="whether a tier can run here"))
    parser.set_defaults(home=None)
    return parser.parse_args(argv)


def _add_profile(parser: Parser) -> None:
    path = "the folder that --profile made, or a *.xplane.pb"
    parser.add_argument("path", type=Path, metavar="PATH", help=path)
    parser.option("--top", positive, None, "operations listed (20)", 20)
    parser.option("--device", whole, None, "which of the trace's devices (0)", 0)
    parser.switch("--json", "as JSON, times in ms a step")
    parser.set_defaults(run_command=profile_command)


def profile_command(args: argparse.Namespace) -> int:
    """Prints where the time of recorded steps went."""
    from jaxchat.train.profiling import summary

    profile = summary.read_profile(args.path, args.device)
    if args.json:
        print(json.dumps(summary.to_json(profile, args.top), indent=1))
    else:
        print(summary.render(profile, args.top))
    return 0
